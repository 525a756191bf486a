//! The record of backups and drills.

use containarium::model::{DatabaseBackup, Drill, Kid, Micros};
use containarium::store::StoreError;

use crate::support::stores::Fixture;

fn backup(id: &str, taken_at: i64) -> DatabaseBackup {
    let target = "a drawer".to_owned();
    DatabaseBackup { id: id.to_owned(), taken_at: Micros(taken_at), target, epoch: 2, generation: 7 }
}

fn drill(id: &str, ran_at: i64) -> Drill {
    Drill {
        id: id.to_owned(),
        ran_at: Micros(ran_at),
        source: "a copy".to_owned(),
        kids: vec![Kid::new([1; 16]), Kid::new([2; 16])],
        deks_opened: 12,
        deks_failed: 3,
    }
}

pub(crate) async fn the_newest_copy_of_the_database_is_the_last_one(f: Fixture) {
    assert_eq!(f.store.last_database_backup().await.unwrap(), None);
    let earlier = f.store.now().await.unwrap();
    f.store.add_database_backup(&backup("new", 50)).await.unwrap();
    f.store.add_database_backup(&backup("old", 20)).await.unwrap();
    let later = f.store.now().await.unwrap();
    assert_eq!(f.store.last_database_backup().await.unwrap(), Some(backup("new", 50)), "by the time of its state");
    let recorded = Micros(f.database.number("SELECT recorded_at FROM database_backups WHERE id = 'new'").await);
    assert!(recorded >= earlier && recorded <= later, "stamped by the database");
    let again = f.store.add_database_backup(&backup("old", 90)).await;
    assert!(matches!(again, Err(StoreError::Refused(_))), "{again:?}");
    assert_eq!(f.rows("database_backups").await, 2);
}

pub(crate) async fn the_newest_drill_is_the_last_one(f: Fixture) {
    assert_eq!(f.store.last_drill().await.unwrap(), None);
    f.store.add_drill(&drill("new", 50)).await.unwrap();
    f.store.add_drill(&Drill { kids: Vec::new(), ..drill("old", 20) }).await.unwrap();
    assert_eq!(f.store.last_drill().await.unwrap(), Some(drill("new", 50)));
    let again = f.store.add_drill(&drill("new", 90)).await;
    assert!(matches!(again, Err(StoreError::Refused(_))), "{again:?}");
    f.database.run("DELETE FROM drills WHERE id = 'new'").await.unwrap();
    assert_eq!(f.store.last_drill().await.unwrap().unwrap().kids, [], "no key at all is a drill too");
}

pub(crate) async fn a_backup_or_drill_that_breaks_the_rule_is_named(f: Fixture) {
    f.store.add_database_backup(&backup("copy", 50)).await.unwrap();
    f.store.add_drill(&drill("trial", 50)).await.unwrap();
    f.database.run("UPDATE database_backups SET epoch = -1").await.unwrap();
    f.database.run("UPDATE drills SET kids = 'zz'").await.unwrap();
    let named = |table: &'static str, key: &str, column: &str| StoreError::Corrupt {
        table,
        key: key.to_owned(),
        what: format!("{column} is missing"),
    };
    assert_eq!(f.store.last_database_backup().await, Err(named("database_backups", "copy", "epoch")));
    assert_eq!(f.store.last_drill().await, Err(named("drills", "trial", "kids")));
    f.database.run("UPDATE drills SET kids = '', deks_failed = -1").await.unwrap();
    assert_eq!(f.store.last_drill().await, Err(named("drills", "trial", "deks_failed")));
}
