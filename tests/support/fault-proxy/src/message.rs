//! A request and its answer, whole, as rules and behaviours look at them.

use anyhow::Result;
use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, header};
use serde::{Deserialize, Serialize};

/// A request with all of its body.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method, such as `POST`.
    pub method: Method,
    /// The path, such as `/`.
    pub path: String,
    /// What follows the question mark, or nothing.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// What logs and counts call it: the field `Action` of the Query protocols, the operation of the JSON ones, else the
    /// method with the path.
    pub fn label(&self) -> String {
        if let Some(action) = self.form().get("Action") {
            return action.to_owned();
        }
        let target = self.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        match target {
            Some(target) => target.rsplit('.').next().unwrap_or(target).to_owned(),
            None => format!("{} {}", self.method, self.path),
        }
    }

    /// Returns the fields of the query, and of the body where it is a form.
    pub fn form(&self) -> Form {
        let mut form = Form::parse(self.query.as_bytes());
        if is_form(&self.headers) {
            form.0.extend(Form::parse(&self.body).0);
        }
        form
    }

    /// Returns the request with another form as its body.
    #[must_use]
    pub fn with_form(&self, form: &Form) -> Self {
        let mut headers = self.headers.clone();
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        Self {
            method: Method::POST,
            query: String::new(),
            headers,
            body: form.encode().into(),
            path: self.path.clone(),
        }
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.starts_with("application/x-www-form-urlencoded")
}

/// The fields of a form, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Form(pub Vec<(String, String)>);

impl Form {
    /// Reads `a=b&c=d`.
    pub fn parse(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    /// Writes `a=b&c=d`.
    pub fn encode(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }

    /// Returns the first value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the values of a list, `name.1`, `name.2` and so on, in the order of the numbers.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let mut found: Vec<(u32, &str)> = self
            .0
            .iter()
            .filter_map(|(key, value)| {
                let number = key.strip_prefix(name)?.strip_prefix('.')?.parse().ok()?;
                Some((number, value.as_str()))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, value)| value).collect()
    }

    /// Returns the numbers of the entries of a list of structures, `name.1.field`, in order.
    pub fn numbers(&self, name: &str) -> Vec<u32> {
        let number = |(key, _): &(String, String)| {
            key.strip_prefix(name)?.strip_prefix('.')?.split('.').next()?.parse().ok()
        };
        let mut numbers: Vec<u32> = self.0.iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Adds a field.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// Removes the fields whose name `unwanted` says yes to.
    pub fn remove(&mut self, unwanted: impl Fn(&str) -> bool) {
        self.0.retain(|(key, _)| !unwanted(key));
    }

    /// Returns the fields sorted, for a comparison that does not depend on their order.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.0.sort_unstable();
        self
    }
}

/// An answer with all of its body.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The status, such as 503.
    pub status: u16,
    /// The headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(default, with = "body", skip_serializing_if = "Bytes::is_empty")]
    pub body: Bytes,
}

impl Answer {
    /// An answer with a body, without headers.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether the status says that it was done.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Returns the body where it is text.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn text(&self) -> Result<&str> {
        Ok(std::str::from_utf8(&self.body)?)
    }

    /// Returns the answer with another body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Writes it for the client.
    ///
    /// # Errors
    ///
    /// When the status or a header is none.
    pub(crate) fn head(&self) -> Result<hyper::http::response::Builder> {
        let mut builder = hyper::Response::builder().status(StatusCode::from_u16(self.status)?);
        for (name, value) in &self.headers {
            // Lengths and framing are those of the body that is sent.
            if !["content-length", "transfer-encoding", "connection"]
                .contains(&name.to_ascii_lowercase().as_str())
            {
                builder = builder.header(name, value);
            }
        }
        Ok(builder)
    }
}

/// Text as text, anything else as `{"base64": …}`.
pub(crate) mod body {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::{Bytes, Deserialize, Serialize};

    #[derive(Deserialize, Serialize)]
    #[serde(untagged)]
    enum Body {
        Text(String),
        Binary { base64: String },
    }

    pub(crate) fn serialize<S: serde::Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Body::Text(text.to_owned()),
            Err(_) => Body::Binary { base64: STANDARD.encode(bytes) },
        }
        .serialize(to)
    }

    pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        match Body::deserialize(from)? {
            Body::Text(text) => Ok(text.into()),
            Body::Binary { base64 } => {
                STANDARD.decode(base64).map(Bytes::from).map_err(serde::de::Error::custom)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request with a form, as SDKs send it.
    pub(crate) fn query(fields: &[(&str, &str)]) -> Request {
        let form = Form(fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        let empty = Request {
            method: Method::POST,
            path: "/".to_owned(),
            query: String::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        empty.with_form(&form)
    }

    #[test]
    fn fields_of_lists_come_in_the_order_of_their_numbers() {
        let form = Form::parse(b"Id.10=c&Id.2=b&Id.1=a&Idx.1=no&Filter.2.Name=x&Filter.1.Value.1=y");
        assert_eq!(form.list("Id"), ["a", "b", "c"]);
        assert_eq!(form.numbers("Filter"), [1, 2]);
    }

    #[test]
    fn a_call_is_called_by_its_operation() {
        assert_eq!(query(&[("Action", "RunInstances")]).label(), "RunInstances");
        let mut json = query(&[]);
        json.headers.insert("x-amz-target", "Service_2020.GetThing".parse().unwrap());
        assert_eq!(json.label(), "GetThing");
        assert_eq!(query(&[]).label(), "POST /");
    }

    #[test]
    fn a_body_that_is_no_text_survives_the_file() {
        for bytes in [&b"<a/>"[..], &[0xff, 0x00, 0xfe]] {
            let answer = Answer::new(200, Bytes::copy_from_slice(bytes));
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&text).unwrap().body, bytes, "{text}");
        }
    }
}
