//! What goes wrong: what failed, why, and the command that mends it; with an exit code.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::client::{ClientError, Effect, ErrorClass};
use crate::config::ConfigError;
use crate::model::{SecretName, Tenant};

use super::output::plain;

/// Exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Denied = 4,
    Unavailable = 5,
    Conflict = 6,
}

impl From<ErrorClass> for Exit {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Failed => Self::Failed,
            ErrorClass::NotFound => Self::NotFound,
            ErrorClass::Denied => Self::Denied,
            ErrorClass::Unavailable => Self::Unavailable,
            ErrorClass::Conflict => Self::Conflict,
        }
    }
}

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(super) struct Failure {
    /// 0: nothing is to be said, since the reader of standard output has seen enough.
    code: u8,
    messages: Vec<String>,
    mend: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { code: exit as u8, messages: vec![message.into()], mend: None }
    }

    /// The daemon's: it said what failed in its log, which goes to standard error too.
    pub(super) const fn logged(code: u8) -> Self {
        Self { code, messages: Vec::new(), mend: None }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// As another kind of failure than its cause has as a rule.
    pub(super) const fn exits(mut self, exit: Exit) -> Self {
        self.code = exit as u8;
        self
    }

    /// Says what to do about it.
    pub(super) fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    /// The settings are wrong; each error is a line.
    pub(super) fn of_settings(errors: &[ConfigError]) -> Self {
        let messages = errors.iter().map(ToString::to_string).collect();
        let mend =
            "mend the setting where it is named; `containarium config check` tells whether all are good".to_owned();
        Self { code: Exit::Usage as u8, messages, mend: Some(mend) }
    }

    /// A reader that hangs up early (`| head`) is no failure; a full disk is.
    pub(super) fn of_output(error: &std::io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            return Self { code: 0, messages: Vec::new(), mend: None };
        }
        Self::new(Exit::Failed, format!("cannot write to standard output: {error}"))
    }

    /// A request failed.
    pub(super) fn of_request(deed: &Deed<'_>, error: &ClientError) -> Self {
        let unknown = match (deed.kind, error.effect()) {
            (DeedKind::Change, Effect::Unknown) => "; whether the change was made is not known",
            _ => "",
        };
        let message = format!("cannot {}: {error}{unknown}", deed.text);
        let failure = Self::new(error.class().into(), message);
        let mend = if unknown.is_empty() { mend(deed, error) } else { deed.look() };
        Self { mend, ..failure }
    }

    #[cfg(test)]
    pub(super) const fn code(&self) -> u8 {
        self.code
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        let mut text = Vec::new();
        self.write(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Prints it to standard error.
    pub(super) fn report(&self) -> ExitCode {
        // Standard error may be closed; the exit code says it then.
        let _ = self.write(&mut std::io::stderr().lock());
        ExitCode::from(self.code)
    }

    fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        for message in &self.messages {
            writeln!(to, "error: {}", plain(message))?;
        }
        match &self.mend {
            Some(mend) => writeln!(to, "  help: {}", plain(mend)),
            None => Ok(()),
        }
    }
}

/// Whether a request changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeedKind {
    Read,
    Change,
}

/// What a request is for, in words that follow "cannot".
pub(super) struct Deed<'a> {
    kind: DeedKind,
    text: String,
    tenant: Option<&'a Tenant>,
    name: Option<&'a SecretName>,
    /// The command that shows how things stand, where it is not about a secret.
    shown_by: Option<&'static str>,
}

impl<'a> Deed<'a> {
    pub(super) fn on_secret(kind: DeedKind, verb: &str, tenant: &'a Tenant, name: &'a SecretName) -> Self {
        Self { kind, text: format!("{verb} {tenant}/{name}"), tenant: Some(tenant), name: Some(name), shown_by: None }
    }

    pub(super) fn on_tenant(verb: &str, tenant: &'a Tenant) -> Self {
        Self {
            kind: DeedKind::Read,
            text: format!("{verb} {tenant}"),
            tenant: Some(tenant),
            name: None,
            shown_by: None,
        }
    }

    /// A change of a tenant as a whole.
    pub(super) fn to_tenant(verb: &str, tenant: &'a Tenant) -> Self {
        Self { kind: DeedKind::Change, ..Self::on_tenant(verb, tenant) }
    }

    pub(super) fn on_daemon(verb: &str) -> Self {
        Self { kind: DeedKind::Read, text: verb.to_owned(), tenant: None, name: None, shown_by: None }
    }

    /// A change of the daemon or its database; `shown_by` is the command that shows how things stand.
    pub(super) fn on_daemon_changing(verb: &str, shown_by: &'static str) -> Self {
        let shown_by = Some(shown_by);
        Self { kind: DeedKind::Change, text: verb.to_owned(), tenant: None, name: None, shown_by }
    }

    /// The command that shows how things stand.
    fn look(&self) -> Option<String> {
        if let Some(command) = self.shown_by {
            return Some(format!("look with `{command}`"));
        }
        Some(match (self.tenant?, self.name) {
            (tenant, Some(name)) => format!("look with `containarium secrets versions {tenant} {name}`"),
            (_, None) => "look with `containarium admin tenants`".to_owned(),
        })
    }

    /// The command that shows what there is.
    fn browse(&self, missing: &str) -> Option<String> {
        if self.shown_by.is_some() {
            return self.look();
        }
        // The status is the same for a tenant and a secret; the daemon's own words tell them apart.
        let name = self.name.filter(|_| !missing.ends_with(" is unknown"));
        Some(match (self.tenant?, name) {
            (tenant, Some(_)) => format!("see what there is with `containarium secrets list {tenant}`"),
            (_, None) => "see which tenants there are with `containarium admin tenants`".to_owned(),
        })
    }
}

fn mend(deed: &Deed<'_>, error: &ClientError) -> Option<String> {
    const SUDO: &str = "run it as root or as the daemon's own user: `sudo containarium …`";
    const STATUS: &str = "`containarium admin status` tells how the daemon is";
    const RELEASE: &str = "compare `containarium --version` with the daemon's release";
    let fixed = match error {
        ClientError::NoDaemon { .. } | ClientError::NoConnection { .. } => {
            "start it with `systemctl start containarium` or `containarium daemon`; to reach one that listens elsewhere, name \
             its socket with --socket (the host's own is root's: `sudo containarium …`)"
        }
        ClientError::NoServer { .. } => {
            "check the host and the port of --server, and that the daemon there has --listen"
        }
        ClientError::NoTls { .. } => {
            "check the port of --server: does something else than the daemon's TLS listen there?"
        }
        ClientError::Untrusted { .. } => {
            "name the certificate of the authority that signed it with --ca-cert, and the server as its certificate does"
        }
        ClientError::Problem { status: 401, .. } => {
            "present a token that holds, with --token-file or CONTAINARIUM_TOKEN: `containarium admin token list` on the daemon's host \
             shows which do, and the daemon's log why a JWT does not"
        }
        ClientError::Problem { status: 403, detail, .. } if detail.starts_with("no right to") => {
            "an administrator of the daemon's host gives rights: `containarium admin token create`, [[socket_users]], or [[oidc]]"
        }
        ClientError::SocketDenied { .. } | ClientError::Problem { status: 403, .. } => SUDO,
        ClientError::Problem { status: 404, detail, .. } => return deed.browse(detail),
        ClientError::Problem { status: 409 | 412, .. } => return deed.look(),
        ClientError::Problem { status: 429 | 503, retry_after: Some(seconds), .. } => {
            return Some(format!("try again in {seconds} seconds; {STATUS}"));
        }
        ClientError::Problem { status: 429 | 503, .. } | ClientError::Deadline { .. } | ClientError::Broken => STATUS,
        ClientError::Problem { status: 500.., request_id, .. } => {
            return Some(format!("the daemon's log says more: `journalctl -u containarium | grep {request_id}`"));
        }
        ClientError::TooLarge { .. } | ClientError::Unreadable { .. } => RELEASE,
        ClientError::Problem { .. } | ClientError::Unsendable => return None,
    };
    Some(fixed.to_owned())
}
