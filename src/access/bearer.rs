//! Bearer credentials (RFC 6750), told apart by how they begin.

/// How tokens of this daemon begin, so that scanners of source code find one that was published.
pub(super) const TOKEN_PREFIX: &str = "ctn_";

/// A credential that somebody presents; nothing of it is checked yet.
pub(super) enum Credential<'a> {
    /// A token of this daemon.
    Token(&'a str),
    /// Nothing that this daemon gives out: an issuer's, where it is anything.
    Jwt(&'a str),
}

impl<'a> Credential<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        if text.starts_with(TOKEN_PREFIX) { Self::Token(text) } else { Self::Jwt(text) }
    }
}
