//! What the worker machine tells the one that drives it: a line of JSON for each assessment.

use serde::{Deserialize, Serialize};

/// The result of one assessment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name.
    pub assessment: String,
    /// Nothing when it held; what was wrong otherwise.
    pub error: Option<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What was seen, in a few words.
    pub seen: String,
}

impl Outcome {
    /// Reads a line; other lines of a machine's output are none.
    ///
    /// ```
    /// use e2e::report::Outcome;
    /// assert_eq!(Outcome::parse("Warning: no xauth data"), None);
    /// let line = r#"{"assessment":"exec","error":null,"seconds":0.1,"seen":"code 0"}"#;
    /// assert_eq!(Outcome::parse(line).unwrap().assessment, "exec");
    /// ```
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}
