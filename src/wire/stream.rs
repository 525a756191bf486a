//! Long work as it is answered: one JSON object a line (NDJSON), the last one `done` or `failed`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Problem;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum StreamLine<T> {
    /// How far it is; there may be any number, also the same again.
    Progress(ProgressLine),
    /// The last line, where all was done: the result's own fields beside `event`.
    Done(T),
    /// The last line, where it was not.
    Failed { problem: Problem },
}

/// How far a piece of work has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressLine {
    /// What is being done, in words.
    pub step: String,
    pub done: u64,
    /// Absent where it is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Result {
        tenants: u64,
    }

    #[test]
    fn each_line_is_an_object_with_its_event_beside_its_fields() {
        let progress = StreamLine::<Result>::Progress(ProgressLine { step: "x".to_owned(), done: 1, total: Some(2) });
        let done = StreamLine::Done(Result { tenants: 3 });
        for (line, json) in [
            (progress, r#"{"event":"progress","step":"x","done":1,"total":2}"#),
            (done, r#"{"event":"done","tenants":3}"#),
        ] {
            assert_eq!(serde_json::to_string(&line).unwrap(), json);
            assert_eq!(serde_json::from_str::<StreamLine<Result>>(json).unwrap(), line);
        }
    }
}
