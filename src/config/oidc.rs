//! `[[oidc]]`: issuers whose JWTs are taken, and what the claims in them are worth.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::google::is_loopback;
use super::{ConfigError, Resolver, Setting, file::Reader, values};
use crate::model::{
    ClaimPattern, ClaimPlace, ClaimTest, Issuer, IssuerKeys, IssuerName, KeySetPlace, NamePattern, Names, Permission,
    PublicAlgorithm, Rule, Scope, Tenant, Wanted,
};

const MOST_ISSUERS: usize = 50;
const MOST_RULES: usize = 500;
const MOST_AUDIENCES: usize = 20;
const MOST_CLAIMS: usize = 20;

const DEFAULT_LEEWAY: Duration = Duration::from_secs(30);
const DEFAULT_LIFETIME: Duration = Duration::from_hours(1);
const DEFAULT_REFRESH: Duration = Duration::from_mins(5);
const DEFAULT_KEEP: Duration = Duration::from_hours(24);

/// A table as it stands in the file; what it says is looked at afterwards.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Table {
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    audiences: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    algorithms: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks_ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leeway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_lifetime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_keys: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleTable>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct RuleTable {
    claims: Vec<(String, Claim)>,
    tenants: Vec<String>,
    permissions: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Claim {
    Text(String),
    Flag(bool),
}

impl Resolver<'_> {
    /// Every issuer that is wrong is told of.
    pub(super) fn oidc(&mut self) -> Option<Vec<Issuer>> {
        let Some(given) = self.layers.find(Setting::Oidc) else {
            self.show(Setting::Oidc, None, super::Origin::Default);
            return Some(Vec::new());
        };
        let base = self.base(&given.origin);
        let lines = given.value.to_str().unwrap_or_default();
        let tables = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Table>, _>>();
        let Ok(tables) = tables else {
            self.invalid(Setting::Oidc, "it cannot be read".to_owned());
            return None;
        };
        let mut issuers: Vec<Issuer> = Vec::with_capacity(tables.len());
        let mut wrong = Vec::new();
        for (number, table) in (1..).zip(tables) {
            match issuer(table, base.as_deref()) {
                Ok(issuer) if issuers.iter().any(|other| other.name == issuer.name) => {
                    let rule = "it is there twice: put its rules into one table; two clusters with one name need an issuer each \
                                (kube-apiserver --service-account-issuer), since with both their keys in one set either could be the other";
                    wrong.push(format!("table {number}: `issuer`: {rule}"));
                }
                Ok(issuer) => issuers.push(issuer),
                Err(why) => wrong.push(format!("table {number}: {why}")),
            }
        }
        if issuers.len() > MOST_ISSUERS {
            wrong.push(format!("at most {MOST_ISSUERS} issuers"));
        }
        let origin = given.origin;
        let shown = wrong.is_empty().then(|| issuers.iter().map(described).collect::<Vec<_>>().join("; "));
        self.show(Setting::Oidc, shown, origin);
        let good = wrong.is_empty();
        for why in wrong {
            self.invalid(Setting::Oidc, why);
        }
        good.then_some(issuers)
    }
}

fn issuer(table: Table, base: Option<&Path>) -> Result<Issuer, String> {
    let name = table.issuer.as_deref().ok_or("`issuer` is missing")?;
    let name = IssuerName::parse(name).map_err(|error| of("issuer", error))?;
    let audiences = audiences(&table.audiences)?;
    let keys = keys(&table, base)?;
    let leeway = time("leeway", table.leeway.as_deref(), DEFAULT_LEEWAY, ("0s", "5m"))?;
    let max_lifetime = time("max_lifetime", table.max_lifetime.as_deref(), DEFAULT_LIFETIME, ("1s", "30d"))?;
    let refresh = time("refresh", table.refresh.as_deref(), DEFAULT_REFRESH, ("1s", "1d"))?;
    let keep_keys = time("keep_keys", table.keep_keys.as_deref(), DEFAULT_KEEP, ("1s", "30d"))?;
    if keep_keys < refresh {
        return Err("`keep_keys`: it must not be shorter than `refresh`: keys would lapse between two looks".to_owned());
    }
    if table.rules.is_empty() || table.rules.len() > MOST_RULES {
        return Err(format!("`rules`: it needs from 1 to {MOST_RULES} of them, each under [[oidc.rules]]"));
    }
    let rules =
        (1..).zip(table.rules).map(|(number, table)| rule(table).map_err(|why| format!("rule {number}: {why}")));
    let rules = rules.collect::<Result<_, String>>()?;
    Ok(Issuer { name, audiences, keys, leeway, max_lifetime, refresh, keep_keys, rules })
}

fn time(field: &str, text: Option<&str>, default: Duration, (least, most): (&str, &str)) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(default) };
    let bounds = values::duration(least).unwrap_or_default()..=values::duration(most).unwrap_or_default();
    let time = values::duration(text).filter(|time| bounds.contains(time));
    time.ok_or_else(|| of(field, format!("it must be a duration from \"{least}\" to \"{most}\"")))
}

fn of(field: &str, why: impl std::fmt::Display) -> String {
    format!("`{field}`: {why}")
}

fn audiences(given: &[String]) -> Result<BTreeSet<String>, String> {
    let fits = |text: &String| (1..=255).contains(&text.len()) && !text.contains(char::is_control);
    if (1..=MOST_AUDIENCES).contains(&given.len()) && given.iter().all(fits) {
        Ok(given.iter().cloned().collect())
    } else {
        let rule = format!(
            "it needs from 1 to {MOST_AUDIENCES}, each of 1 to 255 bytes without control characters: a token that was made for \
             somebody else must not open anything here"
        );
        Err(of("audiences", rule))
    }
}

/// Public keys from one place and with algorithms for them, or a secret and HS256: never both, since a public key that is taken for a secret
/// lets everybody sign.
fn keys(table: &Table, base: Option<&Path>) -> Result<IssuerKeys, String> {
    let path = |field, text: &String| values::path(text.as_ref(), base).map_err(|why| of(field, why));
    if table.jwks_ca.is_some() && table.jwks_url.is_none() {
        return Err("`jwks_ca`: it needs `jwks_url` beside it".to_owned());
    }
    let wants_secret = table.algorithms.iter().any(|name| name == "HS256");
    if wants_secret && table.algorithms.len() > 1 {
        return Err("`algorithms`: HS256 stands alone: who may verify such a token may also make one".to_owned());
    }
    match (&table.jwks_file, &table.jwks_url, &table.secret_file) {
        (None, None, Some(file)) if wants_secret => Ok(IssuerKeys::Secret { file: path("secret_file", file)? }),
        (_, _, None) if wants_secret => Err("`secret_file` is missing: HS256 needs it".to_owned()),
        (_, _, Some(_)) if !wants_secret => {
            Err("`secret_file`: it is for an issuer with algorithms = [\"HS256\"] alone".to_owned())
        }
        (Some(file), None, None) => {
            let set = KeySetPlace::File(path("jwks_file", file)?);
            Ok(IssuerKeys::Public { set, algorithms: algorithms(&table.algorithms)? })
        }
        (None, Some(url), None) => {
            let ca = table.jwks_ca.as_ref().map(|file| path("jwks_ca", file)).transpose()?;
            let set = key_set_url(url, ca)?;
            Ok(IssuerKeys::Public { set, algorithms: algorithms(&table.algorithms)? })
        }
        _ => Err("give one of `jwks_file`, `jwks_url`, and `secret_file` (for HS256)".to_owned()),
    }
}

fn algorithms(given: &[String]) -> Result<BTreeSet<PublicAlgorithm>, String> {
    let known = |name: &String| PublicAlgorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name);
    let found: Option<BTreeSet<_>> = given.iter().map(known).collect();
    let rule =
        "it needs at least one of EdDSA, ES256 and RS256, as the issuer signs; or HS256 alone, with `secret_file`";
    found.filter(|found| !found.is_empty()).ok_or_else(|| of("algorithms", rule))
}

fn key_set_url(text: &str, ca: Option<PathBuf>) -> Result<KeySetPlace, String> {
    let holds = text.len() <= 2048
        && !text.contains(['@', '#'])
        && text.parse::<Uri>().is_ok_and(|uri| match (uri.scheme_str(), uri.host().unwrap_or_default()) {
            (_, "") => false,
            (Some("https"), _) => text.starts_with("https:"),
            (Some("http"), host) => text.starts_with("http:") && is_loopback(host) && ca.is_none(),
            _ => false,
        });
    let rule =
        "it must be an https URL without a password, or an http one on 127.0.0.1 or [::1], and then without `jwks_ca`";
    if holds { Ok(KeySetPlace::Url { url: text.to_owned(), ca }) } else { Err(of("jwks_url", rule)) }
}

fn rule(table: RuleTable) -> Result<Rule, String> {
    if table.claims.len() > MOST_CLAIMS {
        return Err(of("claims", format!("at most {MOST_CLAIMS}")));
    }
    let claims = table.claims.into_iter().map(|(place, wanted)| {
        let place = ClaimPlace::parse(&place).map_err(|error| of("claims", error))?;
        let wanted = match wanted {
            Claim::Text(text) => Wanted::Like(ClaimPattern::parse(&text).map_err(|error| of("claims", error))?),
            Claim::Flag(flag) => Wanted::Is(flag),
        };
        Ok(ClaimTest { place, wanted })
    });
    let claims = claims.collect::<Result<Vec<_>, String>>()?;
    let tenants = table.tenants.iter().map(|text| Tenant::parse(text));
    let tenants = tenants.collect::<Result<Vec<_>, _>>().map_err(|error| of("tenants", error))?;
    let permissions = table.permissions.iter().map(|text| Permission::parse(text));
    let permissions = permissions.collect::<Result<Vec<_>, _>>().map_err(|error| of("permissions", error))?;
    let names = match table.names {
        None => Names::Any,
        Some(patterns) => {
            let patterns = patterns.iter().map(|text| NamePattern::parse(text));
            Names::Like(patterns.collect::<Result<_, _>>().map_err(|error| of("names", error))?)
        }
    };
    let scope = Scope::new(tenants, permissions, names).map_err(|error| error.to_string())?;
    Rule::new(claims, scope).map_err(|error| of("claims", error))
}

/// As `config show` prints it.
fn described(issuer: &Issuer) -> String {
    let mut text = format!("{} for {}", issuer.name, issuer.audiences.iter().cloned().collect::<Vec<_>>().join(" or "));
    match &issuer.keys {
        IssuerKeys::Secret { file } => _ = write!(text, ", by HS256 with {}", file.display()),
        IssuerKeys::Public { set, algorithms } => {
            let names: Vec<_> = algorithms.iter().map(|algorithm| algorithm.as_str()).collect();
            let place = match set {
                KeySetPlace::File(path) => path.display().to_string(),
                KeySetPlace::Url { url, .. } => url.clone(),
            };
            _ = write!(text, ", by {} with {place}", names.join(" or "));
        }
    }
    for rule in &issuer.rules {
        let claims = rule.claims().iter().map(|test| match &test.wanted {
            Wanted::Like(pattern) => format!("{}={}", test.place.as_str(), pattern.as_str()),
            Wanted::Is(flag) => format!("{}={flag}", test.place.as_str()),
        });
        let [tenants, permissions, names] = rule.scope().to_columns();
        let names = if names.is_empty() { "every name".to_owned() } else { names };
        let claims = claims.collect::<Vec<_>>().join(" and ");
        _ = write!(text, ", {claims}: {permissions} of {tenants} on {names}");
    }
    text
}

/// The tables as one text, a line of JSON for each, of which [`issuer`] has the rules; `None` where something has not even the type that it must have, or
/// a name that nothing has, which is an error by then.
pub(super) fn lines(reader: &mut Reader<'_>, tables: &[Spanned<DeValue<'_>>]) -> Option<String> {
    let lines = tables.iter().map(|table| {
        let fields = fields_of(reader, "oidc", table)?;
        serde_json::to_string(&issuer_table(reader, fields)?).ok()
    });
    // Every table is read, so that each one's mistakes are told.
    let lines: Vec<Option<String>> = lines.collect();
    Some(lines.into_iter().collect::<Option<Vec<_>>>()?.join("\n"))
}

fn fields_of<'a, 't>(reader: &mut Reader<'_>, key: &str, table: &'a Spanned<DeValue<'t>>) -> Option<&'a DeTable<'t>> {
    if let DeValue::Table(fields) = table.get_ref() {
        return Some(fields);
    }
    reader.wrong_type(key.to_owned(), &table.span(), "a list of tables", table.get_ref().type_str());
    None
}

fn issuer_table(reader: &mut Reader<'_>, fields: &DeTable<'_>) -> Option<Table> {
    let mut table = Table::default();
    let mut good = true;
    for (field, value) in fields {
        let mut entry = Entry { reader, above: "oidc", field, value };
        good &= match field.get_ref().as_ref() {
            "issuer" => entry.text(&mut table.issuer),
            "audiences" => entry.texts(&mut table.audiences),
            "algorithms" => entry.texts(&mut table.algorithms),
            "jwks_file" => entry.text(&mut table.jwks_file),
            "jwks_url" => entry.text(&mut table.jwks_url),
            "jwks_ca" => entry.text(&mut table.jwks_ca),
            "secret_file" => entry.text(&mut table.secret_file),
            "leeway" => entry.text(&mut table.leeway),
            "max_lifetime" => entry.text(&mut table.max_lifetime),
            "refresh" => entry.text(&mut table.refresh),
            "keep_keys" => entry.text(&mut table.keep_keys),
            "rules" => entry.rules(&mut table.rules),
            _ => entry.unknown(),
        };
    }
    good.then_some(table)
}

fn rule_table(reader: &mut Reader<'_>, fields: &DeTable<'_>) -> Option<RuleTable> {
    let mut table = RuleTable::default();
    let mut good = true;
    for (field, value) in fields {
        let mut entry = Entry { reader, above: "oidc.rules", field, value };
        good &= match field.get_ref().as_ref() {
            "claims" => entry.claims(&mut table.claims),
            "tenants" => entry.texts(&mut table.tenants),
            "permissions" => entry.texts(&mut table.permissions),
            "names" => entry.texts(table.names.insert(Vec::new())),
            _ => entry.unknown(),
        };
    }
    good.then_some(table)
}

/// A key and its value. Each call says whether the value has the type that it must have; one that has not is an error by then.
struct Entry<'a, 'r, 't> {
    reader: &'a mut Reader<'r>,
    above: &'static str,
    field: &'a Spanned<std::borrow::Cow<'t, str>>,
    value: &'a Spanned<DeValue<'t>>,
}

impl Entry<'_, '_, '_> {
    fn key(&self) -> String {
        format!("{}.{}", self.above, self.field.get_ref())
    }

    fn text(&mut self, to: &mut Option<String>) -> bool {
        *to = self.value.get_ref().as_str().map(str::to_owned);
        to.is_some() || self.mistyped("a string")
    }

    fn texts(&mut self, to: &mut Vec<String>) -> bool {
        let texts = |items: &[Spanned<DeValue<'_>>]| {
            items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        let found = self.value.get_ref().as_array().and_then(|items| texts(items));
        match found {
            Some(found) => *to = found,
            None => return self.mistyped("a list of strings"),
        }
        true
    }

    fn claims(&mut self, to: &mut Vec<(String, Claim)>) -> bool {
        let DeValue::Table(claims) = self.value.get_ref() else { return self.mistyped("a table of claims") };
        for (place, wanted) in claims {
            let wanted = match wanted.get_ref() {
                DeValue::String(text) => Claim::Text(text.to_string()),
                DeValue::Boolean(flag) => Claim::Flag(*flag),
                _ => return self.mistyped("a table of claims, each with a string or true or false"),
            };
            to.push((place.get_ref().to_string(), wanted));
        }
        true
    }

    fn rules(&mut self, to: &mut Vec<RuleTable>) -> bool {
        let Some(tables) = self.value.get_ref().as_array() else {
            return self.mistyped("a list of tables, each under [[oidc.rules]]");
        };
        for table in tables {
            let Some(fields) = fields_of(self.reader, "oidc.rules", table) else { return false };
            let Some(rule) = rule_table(self.reader, fields) else { return false };
            to.push(rule);
        }
        true
    }

    fn unknown(&mut self) -> bool {
        let (path, line) = (self.reader.path.to_path_buf(), self.reader.line(&self.field.span()));
        self.reader.errors.push(ConfigError::UnknownKey { path, line, key: self.key() });
        false
    }

    fn mistyped(&mut self, expected: &'static str) -> bool {
        let found = self.value.get_ref().type_str();
        self.reader.wrong_type(self.key(), &self.field.span(), expected, found);
        false
    }
}
