use std::num::NonZeroU64;
use std::time::Duration;

use containarium::backup::{CopyState, Kind, Lifetime, LookedAt, SecretManagerTarget, WhatItWas};
use containarium::crypto::ImageError;
use containarium::model::WrappedError;

use super::*;
use crate::support::google::{Google, SECRET};

const DEADLINE: Duration = Duration::from_secs(10);

fn target(google: &Google, identity: &str) -> SecretManagerTarget {
    SecretManagerTarget::connect(Some(&google.url(identity)), SECRET, DEADLINE).unwrap()
}

fn number(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

#[tokio::test]
async fn what_was_pushed_is_known_by_its_place_and_its_sum_and_comes_back() {
    let google = Google::start().await;
    let (key, kid) = new_key();
    let pushed = target(&google, "daemon").push(&image(&key)).await.unwrap();
    assert_eq!(pushed.locator, format!("{SECRET}/versions/1"));
    assert_eq!((pushed.number, pushed.sha256), (number(1), image(&key).sha256()));

    let fetched = target(&google, "restore").fetch(pushed.number).await.unwrap();
    assert_eq!((fetched.copy.kid(), fetched.copy.sha256()), (Ok(kid), pushed.sha256));
    assert_eq!(fetched.locator, pushed.locator);

    let wrapped = target(&google, "daemon").push(&image(WRAPPED)).await.unwrap();
    let fetched = target(&google, "restore").fetch(wrapped.number).await.unwrap();
    assert_eq!(bytes(&fetched.copy.into_image()), WRAPPED);
}

/// Of ten versions the right one is the seventh.
#[tokio::test]
async fn a_key_is_found_among_ten_versions_by_what_it_is() {
    let google = Google::start().await;
    let keys: Vec<(Vec<u8>, Kid)> = (0..10).map(|_| new_key()).collect();
    for (key, _) in &keys {
        google.add(SECRET, key).await;
    }
    let search = target(&google, "restore").search(&[keys[6].1]).await;
    assert_eq!((search.found[0].number, search.found[0].copy.kid()), (number(7), Ok(keys[6].1)));
    assert!(search.missing.is_empty() && search.found.len() == 1);
    let looked: Vec<LookedAt> = (7..=10)
        .rev()
        .map(|at| LookedAt { number: number(at), was: WhatItWas::Key(keys[usize::try_from(at).unwrap() - 1].1) })
        .collect();
    assert_eq!(search.looked_at, looked, "newest first, and no further than needed");
}

#[tokio::test]
async fn in_the_middle_of_a_rotation_both_keys_are_found() {
    let google = Google::start().await;
    let (old, new) = (new_key(), new_key());
    google.add(SECRET, &old.0).await;
    google.add(SECRET, &new.0).await;
    google.add(SECRET, &old.0).await;
    let search = target(&google, "restore").search(&[old.1, new.1, old.1]).await;
    let found: Vec<(NonZeroU64, Kid)> =
        search.found.iter().map(|found| (found.number, found.copy.kid().unwrap())).collect();
    assert_eq!(found, [(number(3), old.1), (number(2), new.1)], "of two copies the newest");
    assert_eq!(google.requests("access").await.len(), 2);
}

#[tokio::test]
async fn a_search_passes_over_what_cannot_be_the_key_and_says_what_it_was() {
    let google = Google::start().await;
    let (key, kid) = new_key();
    let stranger = new_key();
    let with_newline = [&key[..], b"\n"].concat();
    for content in [&key[..], &key[..31], &with_newline, &stranger.0, &key, &key, WRAPPED] {
        google.add(SECRET, content).await;
    }
    google.set_state(SECRET, 5, "disable").await;
    google.set_state(SECRET, 6, "destroy").await;
    let search = target(&google, "restore").search(&[kid]).await;
    let was: Vec<WhatItWas> = search.looked_at.iter().map(|looked| looked.was.clone()).collect();
    let expected = [
        WhatItWas::NoKey(ImageError::BadWrapped(WrappedError::Kid)),
        WhatItWas::NotEnabled(CopyState::Destroyed),
        WhatItWas::NotEnabled(CopyState::Disabled),
        WhatItWas::Key(stranger.1),
        WhatItWas::NoKey(ImageError::WrongLength { length: 33 }),
        WhatItWas::NoKey(ImageError::WrongLength { length: 31 }),
        WhatItWas::Key(kid),
    ];
    assert_eq!(was, expected);
    assert_eq!(search.found[0].number, number(1));
}

#[tokio::test]
async fn a_key_that_no_version_holds_is_missing() {
    let google = Google::start().await;
    let absent = Kid::new([3; 16]);
    let empty = target(&google, "restore").search(&[absent]).await;
    assert!(empty.looked_at.is_empty() && empty.missing == [absent]);
    let (key, kid) = new_key();
    google.add(SECRET, &key).await;
    let search = target(&google, "restore").search(&[absent, kid]).await;
    assert_eq!((search.missing, search.found.len()), (vec![absent], 1));
}

#[tokio::test]
async fn a_damaged_version_is_passed_over_and_a_denial_is_not() {
    let google = Google::start().await;
    let (key, kid) = new_key();
    google.add(SECRET, &key).await;
    google.fault("flipped-bit", "access").await;
    let search = target(&google, "restore").search(&[kid]).await;
    assert_eq!(search.looked_at, [LookedAt { number: number(1), was: WhatItWas::Damaged }]);
    assert_eq!(search.missing, [kid]);
    for identity in ["daemon", "nobody"] {
        let denied = target(&google, identity).search(&[kid]).await.stopped.unwrap();
        assert_eq!(denied.kind(), Kind::Denied, "{denied}");
    }
}

#[tokio::test]
async fn one_version_that_cannot_be_read_hides_no_older_one() {
    let google = Google::start().await;
    let (key, kid) = new_key();
    google.add(SECRET, &key).await;
    google.add(SECRET, &key).await;
    for fault in ["oversized", "garbage", "other-version", "404"] {
        google.heal().await;
        google.fault_of_version(fault, SECRET, 2).await;
        let search = target(&google, "restore").search(&[kid]).await;
        assert!(search.stopped.is_none(), "{fault}: {:?}", search.stopped);
        assert_eq!(search.found[0].number, number(1), "{fault}");
        assert!(search.looked_at[0].was.to_string().contains("versions/2"), "{fault}: {}", search.looked_at[0].was);
    }
}

#[tokio::test]
async fn what_was_found_before_a_search_was_stopped_stays_found() {
    let google = Google::start().await;
    let (old, new) = (new_key(), new_key());
    for key in [&old, &old, &new] {
        google.add(SECRET, &key.0).await;
    }
    google.add(SECRET, &new.0).await;
    for (fault, kind) in [("403", Kind::Denied), ("503", Kind::Unavailable), ("cut", Kind::Unavailable)] {
        google.heal().await;
        for version in [2, 3] {
            google.fault_of_version(fault, SECRET, version).await;
        }
        let search = target(&google, "restore").search(&[old.1, new.1]).await;
        assert_eq!(search.stopped.map(|error| error.kind()), Some(kind), "{fault}");
        assert_eq!((search.found.len(), search.found[0].number), (1, number(4)), "{fault}");
        assert_eq!(search.missing, [old.1], "{fault}: version 1 was not asked for");
        assert_eq!(search.looked_at.len(), 3, "{fault}");
    }
}

#[tokio::test]
async fn one_version_that_gives_no_answer_hides_no_older_one() {
    let google = Google::start().await;
    let (key, kid) = new_key();
    for _ in 0..3 {
        google.add(SECRET, &key).await;
    }
    for (fault, at) in [("403", 3), ("503", 3), ("cut", 3)] {
        google.heal().await;
        google.fault_of_version(fault, SECRET, at).await;
        let search = target(&google, "restore").search(&[kid]).await;
        assert_eq!(search.found[0].number, number(2), "{fault}");
        assert!(search.stopped.is_none(), "{fault}: what was wanted is found");
        let absent = Kid::new([3; 16]);
        let search = target(&google, "restore").search(&[absent]).await;
        assert_eq!(search.looked_at.len(), 3, "{fault}: the others were looked at");
        assert!(search.stopped.is_some(), "{fault}: it may hold what is missing");
    }
}

#[tokio::test]
async fn the_list_shows_each_version_and_needs_no_right_to_read_them() {
    let google = Google::start().await;
    for _ in 0..2 {
        google.add(SECRET, &new_key().0).await;
    }
    google.set_state(SECRET, 1, "disable").await;
    let listed = target(&google, "daemon").list().await.unwrap();
    let seen: Vec<(u64, String, &str)> =
        listed.iter().map(|v| (v.number.get(), v.state.to_string(), v.locator.as_str())).collect();
    let (second, first) = (format!("{SECRET}/versions/2"), format!("{SECRET}/versions/1"));
    assert_eq!(seen, [(2, "enabled".to_owned(), second.as_str()), (1, "disabled".to_owned(), first.as_str())]);
    assert!(listed.iter().all(|version| version.created_at.is_some()));
    assert!(google.requests("access").await.is_empty());
}

#[tokio::test]
async fn a_secret_that_expires_is_seen_to() {
    let google = Google::start().await;
    let target = target(&google, "daemon");
    assert_eq!(target.lifetime().await.unwrap(), Lifetime::Lasting);
    google.expire(SECRET, Some("864000s")).await;
    assert_eq!(target.lifetime().await.unwrap(), Lifetime::Expires);
    assert_eq!(
        target.mend_expiry(),
        "gcloud secrets update containarium-master --project=acme-prod --remove-expiration"
    );
    let hidden = self::target(&google, "restore").lifetime().await.unwrap();
    assert!(matches!(hidden, Lifetime::Hidden(_)), "{hidden:?}");
    google.expire(SECRET, None).await;
    assert_eq!(target.lifetime().await.unwrap(), Lifetime::Lasting);
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_refused_before_anything_is_sent() {
    let google = Google::start().await;
    let refused = |endpoint: &str, secret: &str, deadline| {
        let refused = SecretManagerTarget::connect(Some(endpoint), secret, deadline).err().unwrap();
        assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
        refused.to_string()
    };
    let url = google.url("daemon");
    assert!(refused("http://example.com", SECRET, DEADLINE).contains("must be https"));
    assert!(refused(&url, "containarium-master", DEADLINE).contains("projects/PROJECT/secrets/SECRET"));
    assert!(refused(&url, SECRET, Duration::ZERO).contains("no time"));
}

#[tokio::test]
async fn each_kind_of_trouble_is_told_apart() {
    let google = Google::start().await;
    google.add(SECRET, &new_key().0).await;
    for (fault, kind) in [
        ("401", Kind::Denied),
        ("403", Kind::Denied),
        ("404", Kind::NotFound),
        ("429", Kind::Unavailable),
        ("503", Kind::Unavailable),
        ("cut", Kind::Unavailable),
        ("slow", Kind::Unavailable),
        ("redirect", Kind::Failed),
        ("flipped-bit", Kind::Failed),
    ] {
        google.heal().await;
        google.fault(fault, "access").await;
        let hasty =
            SecretManagerTarget::connect(Some(&google.url("restore")), SECRET, Duration::from_millis(600)).unwrap();
        let error = hasty.fetch(number(1)).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{fault}: {error}");
    }
}
