use std::sync::Arc;
use std::time::Duration;

use containarium::model::{Kid, Lease, Micros};
use containarium::store::StoreError;
use containarium::store::masters::{Beat, Beaten, ForgetOutcome, Leased};
use tokio::task::JoinSet;

use crate::store::rotation::{MINUTE, NEW, ONE, TWO, holder};
use crate::store::steps::KID;
use crate::support::stores::Fixture;

pub(crate) async fn a_node_is_as_it_last_said(f: Fixture) {
    let f = f.with_key().await;
    assert!(f.store.nodes().await.unwrap().is_empty());
    let earlier = f.store.now().await.unwrap();
    f.beat(TWO, &[]).await;
    f.beat(ONE, &[NEW, KID]).await;
    let nodes = f.store.nodes().await.unwrap();
    assert_eq!(nodes.iter().map(|node| node.node).collect::<Vec<_>>(), [ONE.node, TWO.node], "by id");
    assert_eq!((nodes[0].boot, nodes[0].epoch, nodes[0].live), (ONE.boot, 1, true));
    assert_eq!(nodes[0].durable_kids, [KID, NEW], "sorted");
    assert_eq!(nodes[1].durable_kids, [] as [Kid; 0]);
    assert!(nodes[0].seen_at >= earlier && nodes[0].seen_at <= f.store.now().await.unwrap());

    f.unseen_for(ONE, 20).await;
    let beat = Beat { holder: ONE, previous_boot: None, durable_kids: &[KID], epoch: 2 };
    assert_eq!(f.store.heartbeat(&beat).await.unwrap(), Beaten::Seen);
    let again = f.store.nodes().await.unwrap();
    assert_eq!((again.len(), again[0].epoch, &*again[0].durable_kids), (2, 2, &[KID][..]));
    assert!(again[0].seen_at >= nodes[0].seen_at);
}

pub(crate) async fn a_node_lives_for_thirty_seconds_after_it_was_seen(f: Fixture) {
    let f = f.with_key().await;
    f.beat(ONE, &[KID]).await;
    f.unseen_for(ONE, 20).await;
    assert!(f.store.nodes().await.unwrap()[0].live);
    f.unseen_for(ONE, 11).await;
    assert!(!f.store.nodes().await.unwrap()[0].live);
}

pub(crate) async fn a_copied_data_directory_is_told_of_the_live_boot(f: Fixture) {
    let f = f.with_key().await;
    f.beat(ONE, &[KID]).await;
    let seen_at = f.store.nodes().await.unwrap()[0].seen_at;
    let copy = Beat { holder: holder(1, 2), previous_boot: None, durable_kids: &[NEW], epoch: 7 };
    assert_eq!(f.store.heartbeat(&copy).await.unwrap(), Beaten::Taken { boot: ONE.boot, seen_at });
    let other = Beat { previous_boot: Some(holder(1, 3).boot), ..copy };
    assert_eq!(f.store.heartbeat(&other).await.unwrap(), Beaten::Taken { boot: ONE.boot, seen_at });
    let node = f.store.nodes().await.unwrap().remove(0);
    assert_eq!((node.boot, node.epoch, node.seen_at), (ONE.boot, 1, seen_at), "nothing was written");
}

pub(crate) async fn a_restarted_node_takes_its_row_over_at_once(f: Fixture) {
    let f = f.with_key().await;
    f.beat(ONE, &[KID]).await;
    let next = Beat { holder: holder(1, 2), previous_boot: Some(ONE.boot), durable_kids: &[NEW], epoch: 1 };
    assert_eq!(f.store.heartbeat(&next).await.unwrap(), Beaten::Seen);
    // The boot before is the one that is late now.
    let late = Beat { holder: ONE, previous_boot: None, durable_kids: &[KID], epoch: 1 };
    assert!(matches!(f.store.heartbeat(&late).await.unwrap(), Beaten::Taken { boot, .. } if boot == next.holder.boot));
    // Without a record of its own, it waits until nobody was seen.
    f.unseen_for(next.holder, 31).await;
    assert_eq!(f.store.heartbeat(&late).await.unwrap(), Beaten::Seen);
}

pub(crate) async fn of_two_boots_of_one_new_node_one_is_told(f: Fixture) {
    let f = f.with_key().await;
    let mut beats = JoinSet::new();
    for boot in 1..=8 {
        let store = Arc::clone(&f.store);
        beats.spawn(async move {
            let beat = Beat { holder: holder(1, boot), previous_boot: None, durable_kids: &[KID], epoch: 1 };
            store.heartbeat(&beat).await.unwrap() == Beaten::Seen
        });
    }
    assert_eq!(beats.join_all().await.into_iter().filter(|seen| *seen).count(), 1);
}

pub(crate) async fn only_a_node_that_is_gone_is_forgotten(f: Fixture) {
    let f = f.with_key().await;
    assert_eq!(f.store.forget_node(ONE.node).await.unwrap(), ForgetOutcome::Unknown);
    f.beat(ONE, &[KID]).await;
    f.beat(TWO, &[KID]).await;
    let node = f.store.nodes().await.unwrap().remove(0);
    assert_eq!(f.store.forget_node(ONE.node).await.unwrap(), ForgetOutcome::Live(node));
    f.unseen_for(ONE, 31).await;
    assert_eq!(f.store.forget_node(ONE.node).await.unwrap(), ForgetOutcome::Forgotten);
    let left = f.store.nodes().await.unwrap();
    assert_eq!(left.iter().map(|node| node.node).collect::<Vec<_>>(), [TWO.node]);
}

pub(crate) async fn a_node_that_breaks_the_rule_is_named(f: Fixture) {
    let f = f.with_key().await;
    f.beat(ONE, &[KID]).await;
    f.database.run("UPDATE nodes SET durable_kids = 'all of them'").await.unwrap();
    let nodes = f.store.nodes().await;
    assert!(
        matches!(&nodes, Err(StoreError::Corrupt { table: "nodes", key, .. }) if *key == ONE.node.to_string()),
        "{nodes:?}"
    );
    // The node itself mends it.
    f.beat(ONE, &[KID]).await;
    assert_eq!(f.store.nodes().await.unwrap()[0].durable_kids, [KID]);
}

pub(crate) async fn a_lease_keeps_other_nodes_out_until_it_lapses(f: Fixture) {
    let f = f.with_key().await;
    let earlier = f.store.now().await.unwrap();
    let Leased::Until(until) = f.store.take_lease(ONE, MINUTE).await.unwrap() else { panic!("held") };
    let later = f.store.now().await.unwrap();
    let in_a_minute = |from: Micros| Micros(from.0 + 60_000_000);
    assert!(until >= in_a_minute(earlier) && until <= in_a_minute(later), "by the database's clock");
    let lease = Lease { node: ONE.node, boot: ONE.boot, until };
    assert_eq!(f.state().await.lease, Some(lease));
    assert_eq!(f.store.take_lease(TWO, MINUTE).await.unwrap(), Leased::HeldBy(lease));
    assert_eq!(f.state().await.lease, Some(lease));
    // Renewed by its holder, to a moment that is now and so is past.
    assert!(matches!(f.store.take_lease(ONE, Duration::ZERO).await.unwrap(), Leased::Until(_)));
    assert!(matches!(f.store.take_lease(TWO, MINUTE).await.unwrap(), Leased::Until(_)));
    let lease = f.state().await.lease.unwrap();
    assert_eq!((lease.node, lease.boot), (TWO.node, TWO.boot));
    assert_eq!(f.store.take_lease(ONE, MINUTE).await.unwrap(), Leased::HeldBy(lease));
}

pub(crate) async fn another_boot_of_the_node_takes_its_lease_at_once(f: Fixture) {
    let f = f.with_key().await;
    f.lease(ONE).await;
    f.lease(holder(1, 2)).await;
    assert_eq!(f.state().await.lease.unwrap().boot, holder(1, 2).boot);
}

pub(crate) async fn only_its_holder_gives_a_lease_back(f: Fixture) {
    let f = f.with_key().await;
    f.store.release_lease(ONE).await.unwrap();
    f.lease(ONE).await;
    f.store.release_lease(TWO).await.unwrap();
    f.store.release_lease(holder(1, 2)).await.unwrap();
    assert!(f.state().await.lease.is_some());
    f.store.release_lease(ONE).await.unwrap();
    assert_eq!(f.state().await.lease, None);
}

pub(crate) async fn of_many_that_want_the_lease_one_gets_it(f: Fixture) {
    let f = f.with_key().await;
    let mut wanting = JoinSet::new();
    for node in 1..=8 {
        let store = Arc::clone(&f.store);
        wanting.spawn(async move { store.take_lease(holder(node, 1), MINUTE).await.unwrap() });
    }
    let got = wanting.join_all().await.into_iter().filter(|leased| matches!(leased, Leased::Until(_))).count();
    assert_eq!(got, 1);
}

pub(crate) async fn without_a_first_key_there_is_no_rotation(f: Fixture) {
    let refused = f.store.take_lease(ONE, MINUTE).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    let refused = f.store.raise_generation().await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    // A node may be seen before.
    f.beat(ONE, &[]).await;
}
