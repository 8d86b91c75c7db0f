//! Tests of the rules: against random changes and a simpler model, and special cases.

mod counts;
mod model;
mod premises;
mod steps;

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;

use self::model::Model;
use self::steps::{address, any_step, step};
use super::*;
use crate::catalog::contract::{at, host, kept, mount_id, name, volume};
use crate::catalog::record::{Loader, Table, encode};
use crate::model::host::HostName;
use crate::model::options::{Options, Sharing};

fn kind(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Exists(_) => "exists",
        Refusal::NoSuchVolume => "no such volume",
        Refusal::NotInTrash => "not in trash",
        Refusal::Mounted(_) => "mounted",
        Refusal::Held(_) => "held",
        Refusal::NotMounted(_) => "not mounted",
        Refusal::IdentityTaken(_) => "identity taken",
        Refusal::Expired(_) => "expired",
        Refusal::Known(_) => "known",
        Refusal::Moving(_) => "moving",
        Refusal::Cloned(_) => "cloned",
    }
}

/// The simplest store.
type Store = BTreeMap<(&'static str, Vec<String>), String>;

fn write(store: &mut Store, write: &Write) {
    let row = encode(write).unwrap();
    let key = (row.table.name(), row.key.into_iter().map(Cow::into_owned).collect());
    match row.record {
        Some(record) => drop(store.insert(key, record)),
        None => assert!(store.remove(&key).is_some(), "a row that is not there was to be deleted"),
    }
}

fn load(store: &Store) -> View {
    let mut loader = Loader::default();
    for ((table, key), record) in store.iter().rev() {
        let table = Table::ALL.into_iter().find(|known| known.name() == *table).unwrap();
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        loader.take(table, &key, record).unwrap();
    }
    loader.finish().unwrap()
}

/// Returns the view as a restart would show it.
fn restarted(view: &View) -> View {
    let mut view = view.clone();
    view.volumes = view
        .volumes
        .into_iter()
        .map(|(name, volume)| (name, Arc::new(Volume { visible: true, ..Volume::clone(&volume) })))
        .collect();
    view
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_rules_are_the_models_and_the_records_are_the_view(
        steps in proptest::collection::vec(step(), 0..120)
    ) {
        let (mut view, mut model, mut store) = (View::default(), Model::default(), Store::new());
        for step in &steps {
            let before = view.clone();
            let expected = model.apply(step);
            match view.apply(step.change()) {
                Ok((_, writes)) => {
                    prop_assert_eq!(expected, Ok(()), "{:?} was not refused", step);
                    writes.iter().for_each(|record| write(&mut store, record));
                }
                Err(refusal) => {
                    prop_assert_eq!(expected, Err(kind(&refusal)), "{:?}", step);
                    prop_assert_eq!(&view, &before, "a refusal changed something");
                }
            }
            model.assert_told_by(&view);
            prop_assert_eq!(load(&store), restarted(&view), "after {:?}", step);
        }
        let mut whole = Store::new();
        view.records().for_each(|record| write(&mut whole, &record));
        prop_assert_eq!(whole, store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_records_of_any_steps_are_the_view(steps in proptest::collection::vec(any_step(), 0..80)) {
        let (mut view, mut store) = (View::default(), Store::new());
        for step in &steps {
            let before = view.clone();
            match view.apply(step.change()) {
                Ok((_, writes)) => writes.iter().for_each(|record| write(&mut store, record)),
                Err(_) => prop_assert_eq!(&view, &before, "a refusal changed something"),
            }
            prop_assert_eq!(load(&store), restarted(&view), "after {:?}", step);
        }
    }
}

#[test]
fn a_machine_that_is_named_anew_takes_its_mounts_along() {
    let (old, new) = (host("old"), host("new"));
    let machine = uuid::Uuid::from_u128(7);
    let mut view = View::default();
    let made = volume("db");
    let mounted = |by: &str, id: &str| crate::catalog::contract::mount(&made, by, id);
    let count = |view: &View, by: &HostName, id: &str, stale| {
        let mounts = view.volume("db").unwrap().mounts.iter();
        mounts
            .filter(|m| m.host == *by && m.id.as_str() == id && view.stale(m) == stale)
            .map(|m| m.count)
            .sum::<u32>()
    };
    for change in [
        Change::Insert(made.clone()),
        Change::Publish(made.name.clone(), made.id),
        Change::Name(machine, old.clone()),
        mounted("old", "dead"),
        Change::Activate(old.clone()),
        mounted("old", "live"),
        mounted("old", "both"),
        mounted("new", "both"),
        mounted("web1", "other"),
        Change::Name(machine, new.clone()),
    ] {
        view.apply(change).unwrap();
    }
    assert_eq!(count(&view, &new, "dead", true), 1);
    assert_eq!((count(&view, &new, "live", false), count(&view, &new, "both", false)), (1, 2));
    assert_eq!(count(&view, &host("web1"), "other", false), 1);
    assert!(!view.volume("db").unwrap().mounts.hosts().any(|host| *host == old));
    assert_eq!((view.name_of(machine), view.name_now(&old)), (Some(new.clone()), &new));
    // Its engine goes on with the certificate of the old name.
    let unmount =
        |id| Change::Unmount { name: name("db"), host: old.clone(), id: mount_id(id), target: None };
    assert_eq!(view.apply(unmount("live")).unwrap().0.released.len(), 1);
    view.apply(mounted("old", "again")).unwrap();
    assert_eq!(count(&view, &new, "again", false), 1);
    view.apply(Change::Activate(old.clone())).unwrap();
    assert_eq!((count(&view, &new, "again", true), count(&view, &new, "both", true)), (1, 2));
    // The machine may take its old name again.
    view.apply(Change::Name(machine, old.clone())).unwrap();
    assert_eq!((count(&view, &old, "again", true), view.name_now(&new)), (1, &old));
    assert!(!view.volume("db").unwrap().mounts.hosts().any(|host| *host == new));
}

#[test]
fn of_a_cloned_host_nothing_is_stale_and_an_exclusive_volume_stays_where_it_is() {
    let web1 = host("web1");
    let mut view = View::default();
    let options = Options { access: Some(Sharing::Exclusive), ..Options::default() };
    let made = Volume { options, ..volume("db") };
    let mounted = |from: u8, id: &str| Change::Mount {
        name: name("db"),
        volume: made.id,
        host: web1.clone(),
        id: mount_id(id),
        address: Some(address(from)),
        at: at(1),
        again: false,
    };
    let called = |serial: &str, from: u8| Change::Called {
        host: web1.clone(),
        serial: serial.into(),
        from: address(from),
        at: at(2),
    };
    let stale = |view: &View| view.volume("db").unwrap().mounts.iter().filter(|m| view.stale(m)).count();
    let release = |alive_too| Change::Release { name: name("db"), host: web1.clone(), id: None, alive_too };
    for change in
        [Change::Insert(made.clone()), Change::Publish(name("db"), made.id), called("a", 1), mounted(1, "x")]
    {
        view.apply(change).unwrap();
    }
    // The clone's first call makes live mounts look stale, until the first machine calls again.
    view.apply(called("a", 2)).unwrap();
    view.apply(Change::Activate(web1.clone())).unwrap();
    assert_eq!(stale(&view), 1);
    assert_eq!(view.apply(called("a", 1)).unwrap().0.cloned, Some(true));
    assert!(view.is_cloned(&web1));
    view.apply(Change::Activate(web1.clone())).unwrap();
    assert_eq!(stale(&view), 0);
    assert!(view.apply(release(false)).unwrap().0.released.is_empty());
    assert!(matches!(view.apply(mounted(2, "y")), Err(Refusal::Cloned(_))));
    view.apply(mounted(1, "y")).unwrap();
    // A counted mount may be repeated: a refusal would make the engine take the live mount away.
    view.apply(mounted(1, "x")).unwrap();
    // The cloning ends when another certificate is used; which of the earlier mounts are stale, nobody knows.
    assert_eq!(view.apply(called("b", 2)).unwrap().0.cloned, Some(false));
    view.apply(Change::Activate(web1.clone())).unwrap();
    view.apply(mounted(2, "z")).unwrap();
    view.apply(Change::Activate(web1.clone())).unwrap();
    let mounts = view.volume("db").unwrap().mounts.iter();
    let told: Vec<_> = mounts.map(|m| (m.id.to_string(), view.stale(m))).collect();
    assert!(told.contains(&("x".into(), false)) && told.contains(&("z".into(), true)), "{told:?}");
}

#[test]
fn what_need_not_be_durable_asks_for_no_write() {
    let mut view = View::default();
    let made = volume("db");
    let unknown = Change::Unmount { name: name("db"), host: host("web1"), id: mount_id("x"), target: None };
    for (change, writes) in [
        (unknown.clone(), 0),
        (Change::Activate(host("web1")), 0),
        (Change::Insert(made.clone()), 1),
        (Change::Publish(made.name.clone(), made.id), 0),
        (Change::Confirm(vec![(made.name.clone(), made.id)]), 1),
        (Change::Confirm(vec![(made.name.clone(), made.id)]), 0),
        (unknown.clone(), 0),
        // The host that made the volume is known already; the other one is not.
        (crate::catalog::contract::mount(&made, "web1", "x"), 1),
        (crate::catalog::contract::mount(&made, "web2", "x"), 2),
        (crate::catalog::contract::mount(&made, "web2", "x"), 1),
        (unknown, 1),
        (Change::Activate(host("web1")), 0),
        (Change::Activate(host("web2")), 1),
        (Change::Seen(vec![(host("web1"), at(1)), (host("web2"), at(1))]), 2),
        (Change::Seen(vec![(host("web1"), at(1)), (host("web2"), at(0))]), 0),
        (Change::Connected(host("web1"), "CN=one".into()), 1),
        (Change::Connected(host("web1"), "CN=one".into()), 0),
        (Change::Connected(host("web1"), "CN=two".into()), 1),
        (Change::Connected(host("web9"), "CN=one".into()), 0),
    ] {
        assert_eq!(view.apply(change.clone()).unwrap().1.len(), writes, "{change:?}");
    }
}

#[test]
fn times_outside_the_record_are_brought_within() {
    let before_christ = time::Date::MIN.midnight().assume_utc();
    assert_eq!(recorded_time(before_christ).year(), 0);
    let last = time::Date::MAX.with_hms_nano(23, 59, 59, 999_999_999).unwrap().assume_utc();
    assert_eq!(recorded_time(last).year(), 9999);
    let east = at(0).to_offset(UtcOffset::from_hms(2, 0, 0).unwrap());
    assert_eq!((recorded_time(east), recorded_time(east).offset()), (kept(0), UtcOffset::UTC));
}
