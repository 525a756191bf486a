//! What the fakes of all services share: a call, an error, the enumerations' two ways.

use serde_json::{Value, json};

use super::identity::Identity;

/// One request, read.
pub(crate) struct Call<'a> {
    pub(crate) identity: &'static Identity,
    pub(crate) path: &'a str,
    pub(crate) query: &'a [(String, String)],
    pub(crate) body: &'a Value,
    pub(crate) enums: Enums,
}

/// How closed sets are written: `$alt=json;enum-encoding=int` asks for numbers.
#[derive(Clone, Copy)]
pub(crate) enum Enums {
    Names,
    Numbers,
}

impl Call<'_> {
    pub(crate) fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }
}

/// A refusal in Google's form.
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl ApiError {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, body: json!({"error": {"code": status, "message": message.into(), "status": code}}) }
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(400, "INVALID_ARGUMENT", message)
    }

    pub(crate) fn no_route() -> Self {
        Self::new(404, "NOT_FOUND", "no such method")
    }

    pub(crate) fn denied(permission: &str, path: &str) -> Self {
        let resource = path.trim_start_matches("/v1/");
        let message = format!("Permission '{permission}' denied for resource '{resource}' (or it may not exist).");
        let info = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "IAM_PERMISSION_DENIED",
            "domain": "iam.googleapis.com",
            "metadata": {"permission": permission, "resource": resource},
        });
        let error = json!({"code": 403, "message": message, "status": "PERMISSION_DENIED", "details": [info]});
        Self { status: 403, body: json!({"error": error}) }
    }

    /// As a fault: a status with the code that goes with it.
    pub(crate) fn of_status(status: u16) -> Self {
        let code = match status {
            401 => "UNAUTHENTICATED",
            403 => "PERMISSION_DENIED",
            404 => "NOT_FOUND",
            429 => "RESOURCE_EXHAUSTED",
            503 => "UNAVAILABLE",
            504 => "DEADLINE_EXCEEDED",
            _ => "INTERNAL",
        };
        Self::new(status, code, "a fault of the fake")
    }
}

#[expect(clippy::disallowed_methods, reason = "a server of its own, with the time of its host")]
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// So many seconds from now.
#[expect(clippy::disallowed_methods, reason = "a server of its own, with the time of its host")]
pub(crate) fn after(seconds: u32) -> String {
    (jiff::Timestamp::now() + std::time::Duration::from_secs(u64::from(seconds))).to_string()
}

/// Answers name a project by its number, whatever it was asked by.
pub(crate) fn number_of_project(project: &str) -> String {
    if project.bytes().all(|b| b.is_ascii_digit()) {
        project.to_owned()
    } else {
        (100_000_000_000 + u64::from(crc32c::crc32c(project.as_bytes()))).to_string()
    }
}
