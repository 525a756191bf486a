//! What a caller may be allowed: permissions, name patterns, and the scope that both make with tenants.

use std::collections::BTreeSet;
use std::fmt;

use super::{SecretName, Tenant};

/// What a caller may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    Read,
    /// Metadata, versions too.
    List,
    /// Set and roll back.
    Write,
    /// Delete and undelete.
    Delete,
    Destroy,
}

impl Permission {
    pub const ALL: [Self; 5] = [Self::Read, Self::List, Self::Write, Self::Delete, Self::Destroy];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Destroy => "destroy",
        }
    }

    /// # Errors
    /// [`ScopeError::Permission`].
    pub fn parse(text: &str) -> Result<Self, ScopeError> {
        Self::ALL.into_iter().find(|permission| permission.as_str() == text).ok_or(ScopeError::Permission)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why something is no scope. The messages name the rule and never what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("a permission is read, list, write, delete or destroy")]
    Permission,
    #[error("a name pattern is 1 to 128 of A-Z, 0-9, '_' and '*', and does not start with a digit")]
    Pattern,
    #[error("at least one tenant is needed")]
    NoTenant,
    #[error("the system's own tenant is nobody's")]
    SystemTenant,
    #[error("at least one permission is needed")]
    NoPermission,
    #[error("a list of name patterns that is given names at least one")]
    NoPattern,
    #[error("at most {} tenants and {} name patterns", Scope::MOST, Scope::MOST)]
    TooMany,
}

/// Which secrets' names: `*` stands for any run of characters, none too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamePattern(Box<str>);

impl NamePattern {
    /// # Errors
    /// [`ScopeError::Pattern`].
    pub fn parse(text: &str) -> Result<Self, ScopeError> {
        let bytes = text.as_bytes();
        let first = |b: &u8| b.is_ascii_uppercase() || matches!(b, b'_' | b'*');
        let holds = bytes.len() <= 128
            && bytes.first().is_some_and(first)
            && bytes.iter().all(|b| first(b) || b.is_ascii_digit());
        if holds { Ok(Self(text.into())) } else { Err(ScopeError::Pattern) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn matches(&self, name: &SecretName) -> bool {
        matches_pattern(&self.0, name.as_str())
    }
}

/// Whether a text is of a pattern, in which `*` stands for any run of characters, none too, and everything else for itself.
pub(super) fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| text.strip_prefix(head)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(tail) = parts.pop() else { return rest.is_empty() };
    // The first place that fits leaves the most to what follows.
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(tail)
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names a scope is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    Any,
    /// Those that one of these matches; at least one, sorted.
    Like(BTreeSet<NamePattern>),
}

impl Names {
    #[must_use]
    pub fn cover(&self, name: &SecretName) -> bool {
        match self {
            Self::Any => true,
            Self::Like(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }
}

/// What somebody who is no administrator may do: these permissions, for these tenants, on secrets of these names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    tenants: BTreeSet<Tenant>,
    permissions: BTreeSet<Permission>,
    names: Names,
}

impl Scope {
    /// The most tenants, and the most name patterns.
    pub const MOST: usize = 100;

    /// # Errors
    /// [`ScopeError`]: an empty list, one that is too long, or the system's tenant.
    pub fn new(
        tenants: impl IntoIterator<Item = Tenant>,
        permissions: impl IntoIterator<Item = Permission>,
        names: Names,
    ) -> Result<Self, ScopeError> {
        let (tenants, permissions) =
            (tenants.into_iter().collect::<BTreeSet<_>>(), permissions.into_iter().collect::<BTreeSet<_>>());
        let patterns = match &names {
            Names::Any => 0,
            Names::Like(patterns) if patterns.is_empty() => return Err(ScopeError::NoPattern),
            Names::Like(patterns) => patterns.len(),
        };
        if tenants.is_empty() {
            Err(ScopeError::NoTenant)
        } else if tenants.iter().any(Tenant::is_system) {
            Err(ScopeError::SystemTenant)
        } else if permissions.is_empty() {
            Err(ScopeError::NoPermission)
        } else if tenants.len() > Self::MOST || patterns > Self::MOST {
            Err(ScopeError::TooMany)
        } else {
            Ok(Self { tenants, permissions, names })
        }
    }

    #[must_use]
    pub const fn tenants(&self) -> &BTreeSet<Tenant> {
        &self.tenants
    }

    #[must_use]
    pub const fn permissions(&self) -> &BTreeSet<Permission> {
        &self.permissions
    }

    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// As a token's row holds it: tenants, permissions and name patterns, each sorted and with commas between; no pattern is every name.
    #[must_use]
    pub fn to_columns(&self) -> [String; 3] {
        let names = match &self.names {
            Names::Any => String::new(),
            Names::Like(patterns) => joined(patterns.iter().map(NamePattern::as_str)),
        };
        let permissions = joined(self.permissions.iter().map(|permission| permission.as_str()));
        [joined(self.tenants.iter().map(Tenant::as_str)), permissions, names]
    }

    /// The scope in a token's row; `None` where these are not what [`Scope::to_columns`] writes.
    #[must_use]
    pub fn of_columns(tenants: &str, permissions: &str, names: &str) -> Option<Self> {
        let tenants: Option<Vec<_>> = tenants.split(',').map(|tenant| Tenant::parse(tenant).ok()).collect();
        let permissions: Option<Vec<_>> = permissions.split(',').map(|word| Permission::parse(word).ok()).collect();
        let names = match names {
            "" => Names::Any,
            names => Names::Like(names.split(',').map(|name| NamePattern::parse(name).ok()).collect::<Option<_>>()?),
        };
        Self::new(tenants?, permissions?, names).ok()
    }

    /// Whether it holds this permission for this tenant, on some name.
    #[must_use]
    pub fn allows(&self, permission: Permission, tenant: &Tenant) -> bool {
        !tenant.is_system() && self.tenants.contains(tenant) && self.permissions.contains(&permission)
    }
}

fn joined<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(patterns: &[&str]) -> Names {
        Names::Like(patterns.iter().map(|pattern| NamePattern::parse(pattern).unwrap()).collect())
    }

    #[test]
    fn a_pattern_matches_whole_names_and_its_stars_any_run() {
        let cases = [
            ("DB_*", "DB_", true),
            ("DB_*", "DB_PASSWORD", true),
            ("DB_*", "DB", false),
            ("DB_*", "MY_DB_PASSWORD", false),
            ("*", "ANYTHING", true),
            ("KEY", "KEY", true),
            ("KEY", "KEY2", false),
            ("KEY", "A_KEY", false),
            ("*_KEY", "A_KEY", true),
            ("*_KEY", "A_KEY_", false),
            ("A*B*C", "AXBXC", true),
            ("A*B*C", "ABC", true),
            ("A*B*C", "AXCXB", false),
            ("A*A", "A", false),
            ("A*A", "AA", true),
            ("*AB", "AAB", true),
            ("A*BC*BC", "ABCXBC", true),
            ("A*BC*BC", "ABC", false),
        ];
        for (pattern, name, matches) in cases {
            let name = SecretName::parse(name).unwrap();
            assert_eq!(NamePattern::parse(pattern).unwrap().matches(&name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_has_the_characters_of_names_and_stars() {
        for good in ["*", "A*", "_", "*9", "A1*", &"A".repeat(128)] {
            assert!(NamePattern::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "9*", "A?", "A-*", "A B", "[A]", "É", &"A".repeat(129)] {
            assert_eq!(NamePattern::parse(bad), Err(ScopeError::Pattern), "{bad}");
        }
    }

    #[test]
    fn a_scope_comes_back_from_its_columns() {
        let tenants = ["bob", "alice"].map(|name| Tenant::parse(name).unwrap());
        for names in [Names::Any, names(&["*_KEY", "DB_*"])] {
            let scope = Scope::new(tenants.clone(), [Permission::Write, Permission::Read], names).unwrap();
            let [tenants, permissions, patterns] = scope.to_columns();
            assert_eq!((&*tenants, &*permissions), ("alice,bob", "read,write"));
            assert_eq!(Scope::of_columns(&tenants, &permissions, &patterns), Some(scope));
        }
        for (tenants, permissions, names) in
            [("", "read", ""), ("alice", "", ""), ("alice", "read", ","), ("_system", "read", ""), ("alice", "all", "")]
        {
            assert_eq!(Scope::of_columns(tenants, permissions, names), None, "{tenants} {permissions} {names}");
        }
    }

    #[test]
    fn a_scope_names_at_least_one_of_each_and_never_the_system() {
        let alice = || [Tenant::parse("alice").unwrap()];
        let made = |tenants: Vec<Tenant>, permissions: &[Permission], names| {
            Scope::new(tenants, permissions.iter().copied(), names)
        };
        assert_eq!(made(vec![], &[Permission::Read], Names::Any), Err(ScopeError::NoTenant));
        assert_eq!(made(vec![Tenant::system()], &[Permission::Read], Names::Any), Err(ScopeError::SystemTenant));
        assert_eq!(made(alice().into(), &[], Names::Any), Err(ScopeError::NoPermission));
        assert_eq!(made(alice().into(), &[Permission::Read], names(&[])), Err(ScopeError::NoPattern));
        let many = (0..=Scope::MOST).map(|number| Tenant::parse(&format!("t{number}")).unwrap()).collect();
        assert_eq!(made(many, &[Permission::Read], Names::Any), Err(ScopeError::TooMany));
        let scope = made(alice().into(), &[Permission::Read], names(&["DB_*"])).unwrap();
        let [alice] = alice();
        assert!(scope.allows(Permission::Read, &alice));
        assert!(!scope.allows(Permission::Write, &alice));
        assert!(!scope.allows(Permission::Read, &Tenant::parse("bob").unwrap()));
        assert!(!scope.allows(Permission::Read, &Tenant::system()));
    }
}
