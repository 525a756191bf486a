use super::tokens::Setup;
use super::*;
use crate::clock::SystemClock;
use crate::model::NamePattern;

fn tenant(name: &str) -> Tenant {
    Tenant::parse(name).unwrap()
}

fn name(name: &str) -> SecretName {
    SecretName::parse(name).unwrap()
}

fn no_issuers() -> Issuers {
    Issuers::new(Vec::new(), Arc::new(SystemClock::new()))
}

fn db_names() -> Names {
    Names::Like([NamePattern::parse("DB_*").unwrap()].into())
}

#[tokio::test]
async fn root_and_the_daemons_own_user_may_do_all_and_others_nothing() {
    let access = Access::new(1000, HashMap::new(), Setup::new().await.tokens, no_issuers());
    for (uid, may) in [(0, true), (1000, true), (1001, false), (u32::MAX, false)] {
        let caller = access.socket_peer(uid, None);
        for permission in Permission::ALL {
            let granted = access.authorize(&caller, permission, &tenant("alice"), Some(&name("KEY")));
            assert_eq!(granted.is_ok(), may, "{uid} {permission:?}");
        }
        assert_eq!(access.authorize_admin(&caller).is_ok(), may, "{uid}");
        assert_eq!(access.authenticate(&caller).is_ok(), may, "{uid}");
    }
}

#[tokio::test]
async fn a_socket_user_has_their_scope_and_nothing_beyond_it() {
    let scope = Scope::new([tenant("alice")], [Permission::Read, Permission::List], db_names()).unwrap();
    let access = Access::new(1000, HashMap::from([(33, Arc::new(scope))]), Setup::new().await.tokens, no_issuers());
    let caller = access.socket_peer(33, None);
    let may = |permission, of: &str, named: Option<&str>| {
        let named = named.map(name);
        access.authorize(&caller, permission, &tenant(of), named.as_ref()).map(drop)
    };
    assert_eq!(access.authenticate(&caller), Ok(()));
    assert_eq!(may(Permission::Read, "alice", Some("DB_URL")), Ok(()));
    let beyond = |permission| Err(Denied::Beyond { permission });
    assert_eq!(may(Permission::Read, "alice", Some("KEY")), beyond(Permission::Read));
    assert_eq!(may(Permission::Read, "bob", Some("DB_URL")), beyond(Permission::Read));
    assert_eq!(may(Permission::Write, "alice", Some("DB_URL")), beyond(Permission::Write));
    assert_eq!(access.authorize_admin(&caller), Err(Denied::NoAdministrator));
    let system = access.authorize(&caller, Permission::Read, &Tenant::system(), None);
    assert_eq!(system, Err(Denied::Beyond { permission: Permission::Read }));
    let grant = access.authorize(&caller, Permission::List, &tenant("alice"), None).unwrap();
    assert_eq!(grant.covers(&name("DB_URL")), Ok(()));
    assert_eq!(grant.covers(&name("KEY")), beyond(Permission::List));
}

#[tokio::test]
async fn root_has_all_rights_also_where_the_settings_give_it_fewer() {
    let scope = Scope::new([tenant("alice")], [Permission::Read], Names::Any).unwrap();
    let users = HashMap::from([(0, Arc::new(scope.clone())), (1000, Arc::new(scope))]);
    let access = Access::new(1000, users, Setup::new().await.tokens, no_issuers());
    for uid in [0, 1000] {
        assert!(access.authorize_admin(&access.socket_peer(uid, None)).is_ok());
    }
}
