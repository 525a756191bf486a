//! What can be made to go wrong, over the control port.

use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answers with this status and nothing is done.
    Status(u16),
    /// Never answers.
    Slow,
    /// Answers with a byte each second.
    Drip,
    /// Closes the connection without an answer; nothing is done.
    Cut,
    /// Does what was asked, and closes the connection without an answer.
    LostAnswer,
    /// Does what was asked, and closes the connection in the middle of the answer.
    Truncated,
    /// Does nothing, and answers without end.
    Oversized,
    /// Sends the client to another address of this fake.
    Redirect,
    /// Answers 200 with what is no JSON.
    Garbage,
    /// Refuses, and repeats the request in the refusal.
    Echo,
    /// Changes one bit of a payload on its way.
    FlippedBit,
    /// Leaves out a payload's checksum.
    NoChecksum,
    /// Adds a version and does not confirm its checksum.
    Unconfirmed,
    /// Answers half a second late.
    Late,
    /// Decrypts to another key, with its checksum.
    OtherKey,
    /// Decrypts to a byte less, with its checksum.
    Short,
    /// Names another version than the one that was asked for.
    OtherVersion,
    /// Says on each page that there is another: the same one again.
    SamePage,
    /// Says on each page that there is yet another.
    EndlessPages,
}

const NAMES: [(&str, Fault); 18] = [
    ("slow", Fault::Slow),
    ("drip", Fault::Drip),
    ("cut", Fault::Cut),
    ("lost-answer", Fault::LostAnswer),
    ("truncated", Fault::Truncated),
    ("oversized", Fault::Oversized),
    ("redirect", Fault::Redirect),
    ("garbage", Fault::Garbage),
    ("echo", Fault::Echo),
    ("flipped-bit", Fault::FlippedBit),
    ("no-checksum", Fault::NoChecksum),
    ("unconfirmed", Fault::Unconfirmed),
    ("other-version", Fault::OtherVersion),
    ("late", Fault::Late),
    ("other-key", Fault::OtherKey),
    ("short", Fault::Short),
    ("same-page", Fault::SamePage),
    ("endless-pages", Fault::EndlessPages),
];

impl Fault {
    /// A name, or a status.
    fn parse(text: &str) -> Option<Self> {
        let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, fault)| *fault);
        named.or_else(|| text.parse().ok().filter(|status| (400..600).contains(status)).map(Self::Status))
    }
}

/// A fault, and of which requests.
pub(crate) struct Rule {
    fault: Fault,
    operation: Option<String>,
    identity: Option<String>,
    /// How the request's path goes on to its end: `/versions/3:access`.
    path: Option<String>,
    left: Option<u64>,
}

impl Rule {
    /// `{"fault": NAME or status, "operation"?, "identity"?, "path"?, "times"?}`
    pub(crate) fn read(request: &Value) -> Result<Self, Value> {
        let text = |key: &str| request.get(key).and_then(Value::as_str).map(str::to_owned);
        let fault = request.get("fault").map(|fault| fault.as_str().map_or_else(|| fault.to_string(), str::to_owned));
        let Some(fault) = fault.and_then(|fault| Fault::parse(&fault)) else {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            return Err(json!({"error": "unknown fault", "faults": names, "or": "a status from 400 to 599"}));
        };
        let left = request.get("times").and_then(Value::as_u64);
        Ok(Self { fault, operation: text("operation"), identity: text("identity"), path: text("path"), left })
    }

    fn is_for(&self, operation: &str, identity: &str, path: &str) -> bool {
        self.left != Some(0)
            && self.operation.as_deref().is_none_or(|own| own == operation)
            && self.identity.as_deref().is_none_or(|own| own == identity)
            && self.path.as_deref().is_none_or(|own| path.ends_with(own))
    }
}

/// The fault for this request, which is then counted.
pub(crate) fn take(rules: &mut [Rule], operation: &str, identity: &str, path: &str) -> Option<Fault> {
    let rule = rules.iter_mut().find(|rule| rule.is_for(operation, identity, path))?;
    rule.left = rule.left.map(|left| left.saturating_sub(1));
    Some(rule.fault)
}
