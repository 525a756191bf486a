//! Tokens.

use std::time::Duration;

use containarium::model::{Label, Micros, NamePattern, Names, Permission, Scope, TokenId, TokenRecord, WhichTokens};
use containarium::store::tokens::{NewToken, TokenSealer};
use containarium::store::{SealRefusal, StoreError};

use crate::store::fakes::Values;
use crate::store::steps::{current, intent, tenant};
use crate::support::stores::Fixture;

/// A "MAC": the id's length and what changes later, so that a test sees when it was made.
struct Fake;

impl TokenSealer for Fake {
    fn mac(&self, token: &TokenRecord) -> [u8; 32] {
        let mut mac = [u8::from(token.revoked_at.is_some()); 32];
        mac[0] = u8::try_from(token.tenants.len()).unwrap();
        mac
    }

    fn holds(&self, token: &TokenRecord) -> bool {
        self.mac(token) == token.mac
    }
}

/// Another key.
struct Other;

impl TokenSealer for Other {
    fn mac(&self, token: &TokenRecord) -> [u8; 32] {
        let mut mac = Fake.mac(token);
        mac[31] = 0xff;
        mac
    }

    fn holds(&self, token: &TokenRecord) -> bool {
        self.mac(token) == token.mac
    }
}

fn id(letter: char) -> TokenId {
    TokenId::parse(&letter.to_string().repeat(22)).unwrap()
}

fn new(letter: char, of: &[&str], by: &str) -> NewToken {
    let names = Names::Like([NamePattern::parse("DB_*").unwrap()].into());
    let scope = Scope::new(of.iter().map(|of| tenant(of)), [Permission::Read, Permission::List], names).unwrap();
    NewToken {
        id: id(letter),
        secret_hash: [9; 32],
        name: Label::parse("app").unwrap(),
        scope,
        created_by: Label::parse(by).unwrap(),
        ttl: None,
    }
}

async fn add(f: &Fixture, letter: char, of: &[&str], by: &str) -> TokenRecord {
    f.store.add_token(&new(letter, of, by), &Fake).await.unwrap()
}

async fn generation(f: &Fixture) -> u64 {
    f.store.pulse().await.unwrap().unwrap().generation
}

pub(crate) async fn a_token_comes_back_as_it_was_made_with_the_state_that_it_was_read_in(f: Fixture) {
    assert_eq!(f.store.pulse().await.unwrap(), None);
    assert!(matches!(f.store.token(&id('a')).await, Err(StoreError::Refused(_))), "no key was ever held");
    let f = f.with_key().await;
    let before = f.store.now().await.unwrap();
    let ttl = Some(Duration::from_hours(1));
    let made = f.store.add_token(&NewToken { ttl, ..new('a', &["bob", "alice"], "anna") }, &Fake).await.unwrap();
    assert_eq!((&*made.tenants, &*made.permissions, &*made.names), ("alice,bob", "read,list", "DB_*"));
    assert_eq!(made.mac, Fake.mac(&made), "made over the row as it is");
    assert!(made.created_at >= before && made.created_at <= f.store.now().await.unwrap());
    assert_eq!(made.expires_at, Some(Micros(made.created_at.0 + 3_600_000_000)), "by the database's clock");
    let (pulse, found) = f.store.token(&id('a')).await.unwrap();
    assert_eq!(found, Some(made));
    assert_eq!((pulse.db_id, pulse.generation), ([0xDB; 16], 1));
    assert!(pulse.now >= before);
    let (pulse, found) = f.store.token(&id('b')).await.unwrap();
    assert_eq!((pulse.generation, found), (1, None));
    let again = f.store.add_token(&new('a', &["alice"], "anna"), &Fake).await;
    assert!(matches!(again, Err(StoreError::Refused(_))), "{again:?}");
}

pub(crate) async fn tokens_come_in_pages_by_id(f: Fixture) {
    let f = f.with_key().await;
    for letter in ['b', 'C', 'a'] {
        add(&f, letter, &["alice"], "anna").await;
    }
    let ids = |tokens: &[TokenRecord]| tokens.iter().map(|token| token.id.chars().next().unwrap()).collect::<String>();
    let page = f.store.tokens(None, 2).await.unwrap();
    assert_eq!((ids(&page.items), page.more), ("Ca".to_owned(), true));
    let page = f.store.tokens(Some(&page.items[1].id), 2).await.unwrap();
    assert_eq!((ids(&page.items), page.more), ("b".to_owned(), false));
}

pub(crate) async fn a_revocation_raises_the_generation_in_its_own_transaction(f: Fixture) {
    let f = f.with_key().await;
    add(&f, 'a', &["alice"], "anna").await;
    let which = WhichTokens::Ids(vec![id('a'), id('z')]);
    let revoked = f.store.revoke_tokens(&which, &Fake).await.unwrap();
    assert_eq!((revoked.tokens.len(), revoked.forged.len()), (1, 0));
    let (pulse, found) = f.store.token(&id('a')).await.unwrap();
    assert_eq!(pulse.generation, 2);
    let found = found.unwrap();
    assert_eq!(found, revoked.tokens[0]);
    assert!(found.revoked_at.is_some() && Fake.holds(&found), "the MAC is that of the revoked row");
    assert_eq!(f.store.revoked_tokens().await.unwrap(), [found]);
    let again = f.store.revoke_tokens(&which, &Fake).await.unwrap();
    assert_eq!(again.tokens, []);
    assert_eq!(generation(&f).await, 2, "nothing was revoked, so nothing is told");
}

pub(crate) async fn tokens_are_revoked_by_tenant_by_maker_and_all_of_them(f: Fixture) {
    let f = f.with_key().await;
    for (letter, of, by) in [('a', &["alice"][..], "anna"), ('b', &["bob", "alice"], "ben"), ('c', &["ali"], "ben")] {
        add(&f, letter, of, by).await;
    }
    let revoke = async |which| {
        let revoked = f.store.revoke_tokens(&which, &Fake).await.unwrap();
        revoked.tokens.iter().map(|token| token.id.chars().next().unwrap()).collect::<String>()
    };
    assert_eq!(revoke(WhichTokens::OfTenant(tenant("bob"))).await, "b");
    assert_eq!(revoke(WhichTokens::OfTenant(tenant("alice"))).await, "a", "and no other that begins so");
    assert_eq!(revoke(WhichTokens::CreatedBy(Label::parse("ben").unwrap())).await, "c");
    add(&f, 'd', &["alice"], "anna").await;
    assert_eq!(revoke(WhichTokens::All).await, "d");
}

pub(crate) async fn a_row_that_somebody_else_wrote_is_named_and_gets_no_mac(f: Fixture) {
    let f = f.with_key().await;
    add(&f, 'a', &["alice"], "anna").await;
    f.database.run("UPDATE tokens SET tenants = 'alice,bob'").await.unwrap();
    let revoked = f.store.revoke_tokens(&WhichTokens::All, &Fake).await.unwrap();
    assert_eq!((revoked.tokens.len(), revoked.forged), (0, vec!["a".repeat(22)]));
    let found = f.store.token(&id('a')).await.unwrap().1.unwrap();
    assert!(found.revoked_at.is_none() && !Fake.holds(&found));
    assert_eq!(generation(&f).await, 1);
}

pub(crate) async fn a_use_is_stamped_at_most_once_a_minute(f: Fixture) {
    let f = f.with_key().await;
    add(&f, 'a', &["alice"], "anna").await;
    let used = async || f.store.token(&id('a')).await.unwrap().1.unwrap().last_used_at.map(|at| at.0);
    f.store.touch_tokens(&[id('a'), id('z')]).await.unwrap();
    let first = used().await.unwrap();
    f.store.touch_tokens(&[id('a')]).await.unwrap();
    assert_eq!(used().await, Some(first));
    f.database.run("UPDATE tokens SET last_used_at = last_used_at - 60000000").await.unwrap();
    f.store.touch_tokens(&[id('a')]).await.unwrap();
    assert!(used().await.unwrap() >= first);
    assert!(Fake.holds(&f.store.token(&id('a')).await.unwrap().1.unwrap()), "it is not under the MAC");
}

pub(crate) async fn a_new_key_of_token_rows_is_in_use_for_all_of_them_with_its_own_commit(f: Fixture) {
    let f = f.with_alice().await;
    for letter in ['a', 'b', 'c'] {
        add(&f, letter, &["alice"], "anna").await;
    }
    f.store.revoke_tokens(&WhichTokens::Ids(vec![id('b')]), &Fake).await.unwrap();
    // Of what somebody else wrote the MAC is not right.
    f.database.run("UPDATE tokens SET tenants = 'alice,bob' WHERE id LIKE 'c%'").await.unwrap();
    let before = f.store.token(&id('a')).await.unwrap().0.generation;
    let key = [intent("alice", "KEY")];
    let written = f.store.write_token_key(&key, &Values::of(&["key"]), Some(&Fake), &Other).await.unwrap();
    assert!(written[0].is_ok(), "{written:?}");
    assert_eq!(f.value(current("alice", "KEY")).await, "key");
    for (letter, holds) in [('a', true), ('b', true), ('c', false)] {
        let (pulse, token) = f.store.token(&id(letter)).await.unwrap();
        let token = token.unwrap();
        assert_eq!((Other.holds(&token), Fake.holds(&token)), (holds, false), "{token:?}");
        assert_eq!((token.revoked_at.is_some(), pulse.generation), (letter == 'b', before + 1));
    }
    // A key that is not written leaves all as it was; and where no key held before, none is given.
    let refused = Values::of(&["another"]).refusing(0, SealRefusal::Locked);
    let written = f.store.write_token_key(&key, &refused, Some(&Other), &Fake).await.unwrap();
    assert!(written[0].is_err(), "{written:?}");
    f.store.write_token_key(&key, &Values::of(&["third"]), None, &Fake).await.unwrap();
    assert!(Other.holds(&f.store.token(&id('a')).await.unwrap().1.unwrap()));
}
