use super::*;
use crate::model::{IssuerKeys, KeySetPlace};

const GOOD: [(&str, &str); 4] = [
    ("issuer", "'https://issuer.example'"),
    ("audiences", "['containarium']"),
    ("jwks_url", "'https://issuer.example/keys'"),
    ("algorithms", "['RS256', 'EdDSA']"),
];
const GOOD_RULE: [(&str, &str); 4] = [
    ("claims", "{ repository = 'acme/shop', '/a/b' = 'c*', email_verified = true }"),
    ("tenants", "['shop']"),
    ("permissions", "['read', 'list']"),
    ("names", "['DB_*']"),
];

/// The good table, with some lines that are other ones; an empty one is left out.
fn table(changes: &[(&str, &str)], rule: &[(&str, &str)]) -> String {
    let lines = |good: &[(&str, &str)], changes: &[(&str, &str)]| {
        let kept = good.iter().filter(|(name, _)| !changes.iter().any(|(other, _)| other == name));
        let lines = kept.chain(changes).filter(|(_, value)| !value.is_empty());
        lines.map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join("\n") + "\n"
    };
    format!("[[oidc]]\n{}[[oidc.rules]]\n{}", lines(&GOOD, changes), lines(&GOOD_RULE, rule))
}

#[test]
fn an_issuer_is_a_table_of_whom_it_is_and_what_its_claims_are_worth() {
    let mut setup = Setup::new();
    let file = [("jwks_url", ""), ("jwks_file", "'keys/set.json'"), ("issuer", "'v2'"), ("leeway", "'0s'")];
    let secret = [
        ("jwks_url", ""),
        ("algorithms", "['HS256']"),
        ("secret_file", "'/etc/v1'"),
        ("issuer", "'v1'"),
        ("max_lifetime", "'24h'"),
    ];
    let times = [("refresh", "'1m'"), ("keep_keys", "'2h'"), ("jwks_ca", "'ca.pem'")];
    setup.file(&[table(&times, &[]), table(&file, &[("names", "")]), table(&secret, &[])].concat());
    let effective = setup.good();
    let [one, two, three] = &effective.config.issuers[..] else { panic!("three issuers") };
    assert_eq!((one.refresh, one.keep_keys), (Duration::from_mins(1), Duration::from_hours(2)));
    assert_eq!((one.leeway, one.max_lifetime), (Duration::from_secs(30), Duration::from_hours(1)));
    assert_eq!((two.refresh, two.keep_keys), (Duration::from_mins(5), Duration::from_hours(24)));
    assert_eq!((two.leeway, three.max_lifetime), (Duration::ZERO, Duration::from_hours(24)));
    let IssuerKeys::Public { set: KeySetPlace::Url { url, ca }, algorithms } = &one.keys else { panic!("a URL") };
    assert_eq!((&**url, ca.as_deref()), ("https://issuer.example/keys", Some(&*setup.path("ca.pem"))));
    assert_eq!(algorithms.len(), 2);
    let IssuerKeys::Public { set: KeySetPlace::File(path), .. } = &two.keys else { panic!("a file") };
    assert_eq!(path, &setup.path("keys/set.json"), "relative to the configuration file");
    assert!(matches!(&three.keys, IssuerKeys::Secret { file } if file == Path::new("/etc/v1")));
    assert_eq!(one.rules[0].scope().to_columns().join(" "), "shop read,list DB_*");
    let told = shown(&effective, Setting::Oidc).value.clone().unwrap();
    let says = "https://issuer.example for containarium, by EdDSA or RS256 with https://issuer.example/keys, /a/b=c* and \
                email_verified=true and repository=acme/shop: read,list of shop on DB_*; v2 for containarium, by ";
    assert!(told.starts_with(says), "{told}");
    assert!(told.contains("v1 for containarium, by HS256 with /etc/v1, ") && told.contains("on every name"), "{told}");
    setup.file("");
    assert!(setup.good().config.issuers.is_empty());
}

#[test]
fn an_issuer_that_breaks_a_rule_is_refused_by_its_name() {
    let refused = |text: &str, words: &str| {
        let mut setup = Setup::new();
        setup.file(text);
        let error = setup.error();
        assert!(error.contains(words), "{words}: {error}\n{text}");
    };
    let hs = |more: &[(&'static str, &'static str)]| table(&[&[("algorithms", "['HS256']")], more].concat(), &[]);
    let long = format!("'{}'", "x".repeat(256));
    for (field, value, words) in [
        ("issuer", "", "table 1: `issuer` is missing"),
        ("issuer", "'a b'", "table 1: `issuer`: an issuer's name is"),
        ("issuer", "'a#b'", "`issuer`: an issuer's name is"),
        ("issuer", &long, "`issuer`: an issuer's name is"),
        ("issuer", "1", "`oidc.issuer` must be a string, and is integer"),
        ("audiences", "", "`audiences`: it needs from 1 to 20"),
        ("audiences", "[]", "`audiences`: it needs from 1 to 20"),
        ("audiences", "['']", "`audiences`: it needs from 1 to 20"),
        ("audiences", "'containarium'", "`oidc.audiences` must be a list of strings"),
        ("audiences", "[1]", "`oidc.audiences` must be a list of strings"),
        ("algorithms", "", "`algorithms`: it needs at least one of EdDSA, ES256 and RS256"),
        ("algorithms", "[]", "`algorithms`: it needs at least one of EdDSA, ES256 and RS256"),
        ("algorithms", "['none']", "`algorithms`: it needs at least one of"),
        ("algorithms", "['RS256', 'PS256']", "`algorithms`: it needs at least one of"),
        ("algorithms", "['rs256']", "`algorithms`: it needs at least one of"),
        ("algorithms", "['RS256', 'HS256']", "`algorithms`: HS256 stands alone"),
        ("jwks_url", "", "give one of `jwks_file`, `jwks_url`"),
        ("jwks_url", "'http://issuer.example/keys'", "`jwks_url`: it must be an https URL"),
        ("jwks_url", "'http://localhost/keys'", "`jwks_url`: it must be an https URL"),
        ("jwks_url", "'http://127.0.0.1.example/keys'", "`jwks_url`: it must be an https URL"),
        ("jwks_url", "'https://a:b@issuer.example/'", "`jwks_url`: it must be an https URL without a password"),
        ("jwks_url", "'file:///etc/keys'", "`jwks_url`: it must be an https URL"),
        ("jwks_url", "'/etc/keys'", "`jwks_url`: it must be an https URL"),
        ("jwks_file", "'/etc/keys'", "give one of `jwks_file`, `jwks_url`"),
        ("secret_file", "'/etc/secret'", "`secret_file`: it is for an issuer with algorithms = [\"HS256\"] alone"),
        ("leeway", "'6m'", "`leeway`: it must be a duration from \"0s\" to \"5m\""),
        ("leeway", "30", "`oidc.leeway` must be a string"),
        ("max_lifetime", "'0s'", "`max_lifetime`: it must be a duration from \"1s\" to \"30d\""),
        ("max_lifetime", "'31d'", "`max_lifetime`: it must be"),
        ("refresh", "'25h'", "`refresh`: it must be a duration from \"1s\" to \"1d\""),
        ("keep_keys", "'forever'", "`keep_keys`: it must be a duration from \"1s\" to \"30d\""),
        ("keep_keys", "'4m'", "`keep_keys`: it must not be shorter than `refresh`"),
        ("more", "1", "unknown key `oidc.more`"),
    ] {
        refused(&table(&[(field, value)], &[]), words);
    }
    for (field, value, words) in [
        ("claims", "", "table 1: rule 1: `claims`: at least one claim must be asked for by more than stars"),
        ("claims", "{}", "`claims`: at least one claim"),
        ("claims", "{ sub = '*' }", "`claims`: at least one claim"),
        ("claims", "{ sub = '' }", "`claims`: what a claim must be is"),
        ("claims", "{ '/a~x' = 'b' }", "`claims`: a claim is the name of one"),
        ("claims", "{ sub = 1 }", "`oidc.rules.claims` must be a table of claims, each with a string or true or false"),
        ("claims", "['sub']", "`oidc.rules.claims` must be a table of claims"),
        ("tenants", "", "rule 1: at least one tenant is needed"),
        ("tenants", "['_system']", "rule 1: `tenants`: "),
        ("tenants", "['*']", "rule 1: `tenants`: "),
        ("permissions", "", "rule 1: at least one permission is needed"),
        ("permissions", "['admin']", "rule 1: `permissions`: a permission is read, list"),
        ("names", "[]", "rule 1: a list of name patterns"),
        ("names", "['db']", "rule 1: `names`: a name pattern is"),
        ("more", "1", "unknown key `oidc.rules.more`"),
    ] {
        refused(&table(&[], &[(field, value)]), words);
    }
    refused(&hs(&[]), "`secret_file` is missing");
    refused(&hs(&[("secret_file", "'/s'")]), "give one of");
    refused(&hs(&[("jwks_url", ""), ("jwks_file", "'/f'"), ("secret_file", "'/s'")]), "give one of");
    refused(
        &table(&[("jwks_url", ""), ("jwks_file", "'/f'"), ("jwks_ca", "'/ca'")], &[]),
        "`jwks_ca`: it needs `jwks_url`",
    );
    let plain = [("jwks_url", "'http://127.0.0.1:1/keys'"), ("jwks_ca", "'/ca'")];
    refused(&table(&plain, &[]), "and then without `jwks_ca`");
    refused(&table(&[], &[]).repeat(2), "table 2: `issuer`: it is there twice");
    refused(
        "[[oidc]]\nissuer = 'x'\naudiences = ['a']\nalgorithms = ['RS256']\njwks_file = '/f'\n",
        "`rules`: it needs from 1",
    );
    refused("[[oidc]]\nrules = 1\n", "`oidc.rules` must be a list of tables");
    refused("[[oidc]]\nrules = [1]\n", "`oidc.rules` must be a list of tables");
    refused("oidc = 1\n", "`oidc` must be a list of tables");
    refused("oidc = [1]\n", "`oidc` must be a list of tables");
}

#[test]
fn every_issuer_that_is_wrong_is_told_of() {
    let mut setup = Setup::new();
    let (one, two) = (table(&[("audiences", "[]")], &[]), table(&[("issuer", "'x y'")], &[]));
    setup.file(&[one, two].concat());
    let errors = setup.errors();
    assert!(errors.len() == 2 && errors[0].contains("table 1") && errors[1].contains("table 2"), "{errors:?}");
}
