//! Leaves secrets out of what is written to a file.

use bytes::Bytes;
use hyper::HeaderMap;
use serde_json::Value;

use crate::message::{Answer, Form, Request};

/// What stands in the place of a secret.
pub const LEFT_OUT: &str = "[left out]";

/// Names of headers, fields, JSON keys and XML elements whose value is a secret, in small letters, without `-` and `_`.
const SECRETS: &[&str] = &[
    "accesskeyid",
    "accesstoken",
    "apikey",
    "assertion",
    "authorization",
    "awsaccesskeyid",
    "clientassertion",
    "clientsecret",
    "cookie",
    "customdata",
    "idtoken",
    "keymaterial",
    "passwd",
    "password",
    "privatekey",
    "proxyauthorization",
    "refreshtoken",
    "secret",
    "secretaccesskey",
    "securitytoken",
    "sessiontoken",
    "setcookie",
    "signature",
    "token",
    "userdata",
    "webidentitytoken",
    "xamzcredential",
    "xamzsecuritytoken",
    "xamzsignature",
    "xapikey",
    "xauthtoken",
    "xawsec2metadatatoken",
];

/// Whether a name stands for a secret. `LaunchTemplateData.UserData` does by its last part.
fn is_secret(name: &str) -> bool {
    let last = name.rsplit(['.', ':']).next().unwrap_or(name);
    let plain: String = last.chars().filter(|c| !['-', '_'].contains(c)).collect();
    SECRETS.contains(&plain.to_ascii_lowercase().as_str())
}

/// Returns the headers by name, without those that are secrets or say nothing about the call.
pub(crate) fn headers(headers: &HeaderMap) -> Vec<(String, String)> {
    const NOISE: &[&str] =
        &["accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "host", "user-agent", "x-amz-date"];
    let shown = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        let keep = !NOISE.contains(&name.as_str()) && !is_secret(name.as_str());
        keep.then(|| Some((name.to_string(), value.to_str().ok()?.to_owned())))?
    };
    headers.iter().filter_map(shown).collect()
}

/// Returns the fields, each secret left out.
pub(crate) fn form(mut form: Form) -> Form {
    for (name, value) in &mut form.0 {
        if is_secret(name) {
            LEFT_OUT.clone_into(value);
        }
    }
    form
}

/// Returns the body of a request without secrets.
pub(crate) fn request_body(request: &Request) -> Bytes {
    let kind = request.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/x-www-form-urlencoded") {
        return form(Form::parse(&request.body)).encode().into();
    }
    body(&request.path, &request.body)
}

/// Returns an answer without secrets; `path` is what was asked for.
pub(crate) fn answer(path: &str, answer: &Answer) -> Answer {
    Answer {
        status: answer.status,
        headers: answer.headers.iter().filter(|(name, _)| !is_secret(name)).cloned().collect(),
        body: body(path, &answer.body),
    }
}

fn body(path: &str, bytes: &Bytes) -> Bytes {
    // A metadata service hands its token out as bare text.
    if path.rsplit('/').next().is_some_and(is_secret) {
        return if bytes.is_empty() { Bytes::new() } else { LEFT_OUT.into() };
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return bytes.clone() };
    if let Ok(mut value) = serde_json::from_str::<Value>(text)
        && (value.is_object() || value.is_array())
    {
        json(&mut value);
        return value.to_string().into();
    }
    xml(text).map_or_else(|| bytes.clone(), Bytes::from)
}

fn json(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if is_secret(name) && !value.is_null() {
                    *value = LEFT_OUT.into();
                } else {
                    json(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(json),
        _ => {}
    }
}

fn xml(text: &str) -> Option<String> {
    let document = roxmltree::Document::parse(text).ok()?;
    let secrets =
        document.descendants().filter(|node| node.is_element() && is_secret(node.tag_name().name()));
    let mut text = text.to_owned();
    let ranges: Vec<_> = secrets
        .map(|node| {
            let name = node.tag_name().name();
            (node.range(), format!("<{name}>{LEFT_OUT}</{name}>"))
        })
        .collect();
    for (range, instead) in ranges.into_iter().rev() {
        // One within another is gone with it.
        if text.get(range.clone()).is_some_and(|old| old.starts_with('<') && old.ends_with('>')) {
            text.replace_range(range, &instead);
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::query;

    #[test]
    fn secrets_of_forms_json_xml_and_headers_are_left_out() {
        let mut request =
            query(&[("Action", "RunInstances"), ("UserData", "c2VjcmV0"), ("ClientToken", "t")]);
        request.headers.insert("authorization", "AWS4 secret".parse().unwrap());
        request.headers.insert("x-amz-security-token", "secret".parse().unwrap());
        request.headers.insert("x-amz-target", "shown".parse().unwrap());
        let text = String::from_utf8(request_body(&request).to_vec()).unwrap();
        assert_eq!(text, "Action=RunInstances&UserData=%5Bleft+out%5D&ClientToken=t");
        let names: Vec<String> = headers(&request.headers).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["content-type", "x-amz-target"]);
        for (path, plain, shown) in [
            ("/", r#"{"Token":"s3cr3t","a":[{"SecretAccessKey":"s3cr3t","b":1}]}"#, r#""b":1"#),
            ("/", "<r><keyMaterial>s3cr3t</keyMaterial><a>shown</a></r>", "<a>shown</a>"),
            ("/", "<r><secret><token>s3cr3t</token></secret><a/></r>", "<a/>"),
            ("/latest/api/token", "s3cr3t", LEFT_OUT),
        ] {
            let text = String::from_utf8(body(path, &plain.into()).to_vec()).unwrap();
            assert!(text.contains(LEFT_OUT) && text.contains(shown) && !text.contains("s3cr3t"), "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        let text = "<r><nextToken>n</nextToken>\n<clientToken>c</clientToken></r>";
        assert_eq!(body("/", &text.into()), text);
        assert_eq!(body("/", &"plain text".into()), "plain text");
        assert_eq!(body("/", &Bytes::from_static(&[0xff])), &[0xff][..]);
    }
}
