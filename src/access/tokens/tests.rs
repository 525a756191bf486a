use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::*;
use crate::access::token::{MadeToken, make_token};
use crate::crypto::SecretValue;
use crate::model::{DekId, Kid, Label, Names, Permission, Tenant, WhichTokens};
use crate::store::tokens::{NewToken, Tokens as _};
use crate::store::{FirstKey, FirstKeyMaker, NewDek, SqliteStore};

/// A clock that a test moves, in milliseconds.
#[derive(Default)]
pub(in crate::access) struct Hand(AtomicU64);

impl Clock for Hand {
    fn wall(&self) -> Micros {
        Micros(0)
    }

    fn monotonic(&self) -> Duration {
        self.since_boot()
    }

    fn since_boot(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// The key, and how often it was asked for.
#[derive(Default)]
struct Key(AtomicU64);

fn mac_key() -> TokenMacKey {
    TokenMacKey::of(&SecretValue::new(Zeroizing::new(vec![7; 32]))).unwrap()
}

#[async_trait]
impl TokenKey for Key {
    async fn token_mac(&self) -> Result<TokenMacKey, String> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(mac_key())
    }
}

struct First;

impl FirstKeyMaker for First {
    fn make(&mut self) -> Result<FirstKey, String> {
        let system_dek = NewDek { id: DekId::new([1; 16]), wrapped: vec![1; 132] };
        Ok(FirstKey { kid: Kid::new([1; 16]), db_id: [1; 16], system_dek, system_secrets: Vec::new() })
    }
}

/// A store with tokens, and all that they are checked with.
pub(in crate::access) struct Setup {
    dir: tempfile::TempDir,
    store: Arc<SqliteStore>,
    key: Arc<Key>,
    hand: Arc<Hand>,
    revoked: Arc<RevokedHere>,
    pub(in crate::access) tokens: Tokens,
}

impl Setup {
    pub(in crate::access) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("db")).await.unwrap());
        store.first_key(&mut First).await.unwrap();
        let (key, hand, revoked) = (Arc::<Key>::default(), Arc::<Hand>::default(), Arc::<RevokedHere>::default());
        let tokens =
            Tokens::new(Arc::clone(&store) as _, Arc::clone(&key) as _, Arc::clone(&hand) as _, Arc::clone(&revoked));
        Self { dir, store, key, hand, revoked, tokens }
    }

    async fn made(&self, ttl: Option<Duration>) -> (MadeToken, TokenRecord) {
        let made = make_token().unwrap();
        let scope = Scope::new([Tenant::parse("alice").unwrap()], [Permission::Read], Names::Any).unwrap();
        let label = Label::parse("test").unwrap();
        let new = NewToken {
            id: made.id.clone(),
            secret_hash: made.secret_hash,
            name: label.clone(),
            scope,
            created_by: label,
            ttl,
        };
        let row = self.store.add_token(&new, &RowSealer(mac_key())).await.unwrap();
        (made, row)
    }

    async fn revoke(&self, made: &MadeToken) {
        let which = WhichTokens::Ids(vec![made.id.clone()]);
        assert_eq!(self.store.revoke_tokens(&which, &RowSealer(mac_key())).await.unwrap().tokens.len(), 1);
    }

    async fn check(&self, made: &MadeToken) -> Result<String, Unauthenticated> {
        self.tokens.check(&made.text).await.map(|caller| caller.identity().to_string())
    }

    fn pass(&self, milliseconds: u64) {
        self.hand.0.fetch_add(milliseconds, Ordering::Relaxed);
    }

    async fn sql(&self, statement: &'static str) {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.dir.path().join("db"));
        let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
        assert!(sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected() > 0);
    }
}

#[tokio::test]
async fn a_token_that_is_remembered_as_revoked_is_refused_though_its_row_is_good_and_warm() {
    let setup = Setup::new().await;
    let (made, _) = setup.made(None).await;
    assert!(setup.check(&made).await.is_ok());
    setup.revoked.remember([made.id.clone()]);
    assert_eq!(setup.check(&made).await, Err(Unauthenticated::Invalid));
}

#[tokio::test]
async fn a_token_that_was_checked_costs_no_look_at_the_database_for_a_second_and_then_lets_nobody_in_without_one() {
    let setup = Setup::new().await;
    let (made, _) = setup.made(None).await;
    assert_eq!(setup.check(&made).await, Ok(format!("token:{}", made.id)));
    setup.store.close().await;
    setup.pass(1000);
    assert!(setup.check(&made).await.is_ok());
    setup.pass(1);
    let refused = setup.check(&made).await;
    assert_eq!(refused, Err(Unauthenticated::Unavailable));
    setup.tokens.poll().await;
    assert!(setup.check(&made).await.is_err(), "a poll in vain tells nothing");
}

#[tokio::test]
async fn good_polls_keep_a_token_warm_and_the_time_counts_from_when_they_were_sent() {
    let setup = Setup::new().await;
    let (made, _) = setup.made(None).await;
    setup.check(&made).await.unwrap();
    for _ in 0..10 {
        setup.pass(900);
        setup.tokens.poll().await;
        setup.check(&made).await.unwrap();
    }
    assert_eq!(setup.key.0.load(Ordering::Relaxed), 1, "its row was read once");
    let (pulse, _) = setup.tokens.beat().last.unwrap();
    setup.pass(5000);
    let long_ago = setup.hand.since_boot().checked_sub(Duration::from_millis(1001)).unwrap();
    setup.tokens.heard(pulse, long_ago);
    setup.store.close().await;
    assert!(setup.check(&made).await.is_err(), "the answer was under way for more than a second");
}

#[tokio::test]
async fn a_revoked_token_is_refused_at_the_next_poll_and_after_a_second_without_one() {
    let setup = Setup::new().await;
    for polled in [true, false] {
        let (made, _) = setup.made(None).await;
        setup.check(&made).await.unwrap();
        setup.revoke(&made).await;
        assert!(setup.check(&made).await.is_ok(), "nobody has told this node yet");
        if polled {
            setup.tokens.poll().await;
        } else {
            setup.pass(1001);
        }
        assert_eq!(setup.check(&made).await, Err(Unauthenticated::Invalid));
        assert_eq!(setup.check(&made).await, Err(Unauthenticated::Invalid));
    }
}

#[tokio::test]
async fn a_token_ends_by_the_databases_clock_and_never_late() {
    let setup = Setup::new().await;
    let (made, row) = setup.made(Some(Duration::from_hours(1))).await;
    setup.check(&made).await.unwrap();
    let (pulse, _) = setup.tokens.beat().last.unwrap();
    let end = row.expires_at.unwrap().0;
    setup.tokens.heard(Pulse { now: Micros(end - 1000), ..pulse }, setup.hand.since_boot());
    assert!(setup.check(&made).await.is_ok());
    setup.pass(1);
    assert_eq!(setup.check(&made).await, Err(Unauthenticated::Invalid));
    let (over, _) = setup.made(Some(Duration::ZERO)).await;
    assert_eq!(setup.check(&over).await, Err(Unauthenticated::Invalid), "when its row is read too");
}

#[tokio::test]
async fn a_row_that_somebody_else_wrote_or_changed_authenticates_nobody() {
    for change in [
        "UPDATE tokens SET tenants = 'bob'",
        "UPDATE tokens SET permissions = 'destroy,read'",
        "UPDATE tokens SET names = '*'",
        "UPDATE tokens SET name = 'other'",
        "UPDATE tokens SET expires_at = NULL",
        "UPDATE tokens SET expires_at = expires_at + 1",
        "UPDATE tokens SET mac = zeroblob(32)",
        "UPDATE tokens SET created_by = 'other'",
    ] {
        let setup = Setup::new().await;
        let (made, _) = setup.made(Some(Duration::from_hours(1))).await;
        setup.sql(change).await;
        assert_eq!(setup.check(&made).await, Err(Unauthenticated::Invalid), "{change}");
    }
    let setup = Setup::new().await;
    let (made, _) = setup.made(None).await;
    setup.revoke(&made).await;
    setup.sql("UPDATE tokens SET revoked_at = NULL").await;
    assert_eq!(setup.check(&made).await, Err(Unauthenticated::Invalid), "a revocation taken back");
    let (made, _) = setup.made(None).await;
    setup.sql("UPDATE tokens SET last_used_at = 1").await;
    assert!(setup.check(&made).await.is_ok(), "it decides nothing");
}

#[tokio::test]
async fn an_unknown_id_and_a_wrong_secret_cost_the_same_and_are_told_the_same() {
    let setup = Setup::new().await;
    let (known, _) = setup.made(None).await;
    let unknown = make_token().unwrap();
    let wrong = MadeToken { id: known.id.clone(), ..make_token().unwrap() };
    setup.sql("UPDATE tokens SET secret_hash = zeroblob(32)").await;
    for made in [unknown, wrong, known] {
        let before = setup.key.0.load(Ordering::Relaxed);
        assert_eq!(setup.check(&made).await, Err(Unauthenticated::Invalid));
        assert_eq!(setup.key.0.load(Ordering::Relaxed), before + 1);
    }
    let before = setup.key.0.load(Ordering::Relaxed);
    assert_eq!(setup.tokens.check("ctn_not_one").await, Err(Unauthenticated::Invalid));
    assert_eq!(setup.key.0.load(Ordering::Relaxed), before, "a checksum that is wrong costs no look");
}

#[tokio::test]
async fn a_database_that_went_back_vouches_for_nobody() {
    let setup = Setup::new().await;
    let (made, _) = setup.made(None).await;
    setup.check(&made).await.unwrap();
    let (pulse, _) = setup.tokens.beat().last.unwrap();
    let ahead = Pulse { generation: pulse.generation + 5, ..pulse };
    setup.tokens.heard(ahead, setup.hand.since_boot());
    setup.tokens.heard(pulse, setup.hand.since_boot());
    let refused = setup.check(&made).await;
    assert_eq!(refused, Err(Unauthenticated::Unavailable));
    setup.tokens.begin_again();
    assert!(setup.check(&made).await.is_ok(), "it was accepted as it is");
}

#[tokio::test]
async fn a_use_is_written_down_once_a_minute() {
    let setup = Setup::new().await;
    let (made, _) = setup.made(None).await;
    let used = async || setup.store.token(&made.id).await.unwrap().1.unwrap().last_used_at;
    setup.tokens.poll().await;
    setup.check(&made).await.unwrap();
    assert_eq!(used().await, None, "the answer does not wait for it");
    setup.tokens.note_used().await;
    assert!(used().await.is_some());
    setup.pass(59_000);
    setup.tokens.poll().await;
    setup.check(&made).await.unwrap();
    assert!(setup.tokens.used.lock().unwrap().is_empty());
    setup.pass(1000);
    setup.tokens.poll().await;
    setup.check(&made).await.unwrap();
    assert_eq!(setup.tokens.used.lock().unwrap().len(), 1);
}
