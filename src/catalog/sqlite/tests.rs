//! The embedded engine against the battery, damaged files and full disks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rusqlite::Connection;

use super::*;
use crate::catalog::contract::{self, create, host, mount, name, remove, volume};
use crate::catalog::{Refusal, Volume};
use crate::error::chain;
use crate::model::mounts::Activation;

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_engine_passes_the_battery() {
    let directory = tempfile::tempdir().unwrap();
    contract::battery(async |store| {
        let path = directory.path().join(store).join("catalog.db");
        let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
        catalog
    })
    .await;
}

/// Returns the files of a directory, without locks and shared memory, which hold nothing.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            !path.to_str().unwrap().ends_with(".lock") && !path.to_str().unwrap().ends_with("-shm")
        })
        .map(|path| (path.clone(), if path.is_file() { fs::read(&path).unwrap() } else { vec![] }))
        .collect()
}

/// Opens what must be refused. Checks that nothing was changed and returns the refusal.
fn refusal(path: &Path) -> String {
    let before = contents(path.parent().unwrap());
    let error = open(path).err().unwrap_or_else(|| panic!("{} was opened", path.display()));
    assert!(before == contents(path.parent().unwrap()), "{} was changed: {}", path.display(), chain(&error));
    chain(&error)
}

/// Returns a closed catalog of some pages, as bytes, and its view.
fn some_pages() -> (Vec<u8>, Arc<View>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let catalog = open(&path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let view = runtime.block_on(async {
        let inserted: Vec<_> =
            (0..150).map(|i| catalog.submit(Change::Insert(volume(&format!("volume-{i}"))))).collect();
        for inserted in inserted {
            let made = inserted.await.unwrap().after.unwrap();
            catalog.submit(Change::Publish(made.name.clone(), made.id)).await.unwrap();
        }
        catalog.close().await;
        catalog.view()
    });
    (fs::read(&path).unwrap(), view)
}

#[test]
fn a_new_catalog_is_its_owners_alone_and_leaves_nothing_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/catalog.db");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // A crash left this while the catalog was being made.
    fs::write(path.with_file_name("catalog.db.new"), "half").unwrap();
    let catalog = open(&path).unwrap();
    for file in ["catalog.db", "catalog.db-wal", "catalog.db.lock"] {
        let mode = fs::metadata(path.with_file_name(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(catalog.location(), format!("sqlite:{}", path.display()));
    drop(catalog);
    let left: Vec<_> = contents(path.parent().unwrap()).into_keys().collect();
    assert_eq!(left, [path]);
}

#[test]
fn a_catalog_is_one_whatever_it_is_called_and_has_one_user() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let link = directory.path().join("link.db");
    let catalog = open(&path).unwrap();
    symlink(&path, &link).unwrap();
    for name in [&path, &link] {
        let text = chain(&open(name).unwrap_err());
        assert!(text.contains(&format!("in use by process {}", std::process::id())), "{text}");
    }
    drop(catalog);
    open(&link).unwrap();
    assert!(!directory.path().join("link.db-wal").exists());
    let dangling = directory.path().join("dangling.db");
    symlink(directory.path().join("nowhere.db"), &dangling).unwrap();
    let text = chain(&open(&dangling).unwrap_err());
    assert!(text.contains("cannot be found: No such file"), "{text}");
}

#[test]
fn what_is_no_whole_catalog_is_refused_as_it_is() {
    let (whole, _) = some_pages();
    let header = |range: std::ops::Range<usize>, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[range].copy_from_slice(bytes);
        changed
    };
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "is an empty file"),
        ("text", b"hello".to_vec(), "it is no SQLite file"),
        ("beginning lost", header(0..16, &[0; 16]), "it is no SQLite file"),
        ("short", whole[..60].to_vec(), "ends within its header"),
        ("foreign", header(68..72, b"abcd"), "another program's SQLite file"),
        ("no schema", header(60..64, &[0; 4]), "it says schema 0"),
        ("negative", header(60..64, &[0xff; 4]), "it says schema -1"),
        ("newer", header(60..64, &[0, 0, 0, 2]), "has schema 2, and this volhost knows up to 1"),
    ];
    for (case, bytes, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        fs::write(&path, bytes).unwrap();
        let text = refusal(&path);
        assert!(text.contains(expected) && text.contains(path.to_str().unwrap()), "{case}: {text}");
    }
}

#[test]
fn a_log_without_its_file_is_refused() {
    for suffix in ["-wal", "-journal"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        fs::write(directory.path().join(format!("catalog.db{suffix}")), "x").unwrap();
        let text = refusal(&path);
        assert!(text.contains("is missing, but") && text.contains(suffix), "{text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    fs::create_dir(&path).unwrap();
    assert!(refusal(&path).contains("is not a regular file"));
}

#[test]
fn wherever_it_was_cut_off_a_file_is_refused() {
    let (whole, _) = some_pages();
    assert!(whole.len() >= 8 * 4096, "some pages are needed: {}", whole.len());
    let pages = (0..whole.len()).step_by(4096).flat_map(|page| [page, page + 1, page + 2000, page + 4095]);
    for length in pages.filter(|length| *length < whole.len()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        fs::write(&path, &whole[..length]).unwrap();
        refusal(&path);
    }
}

#[test]
fn flipped_bits_are_refused_or_do_no_harm() {
    let (whole, view) = some_pages();
    let mut refused = 0;
    // The beginnings of pages, which hold their structure, and positions all over them.
    let places =
        (0..whole.len()).step_by(4096).flat_map(|page| (page..page + 12).chain([page + 1777, page + 3500]));
    for place in places {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        fs::write(&path, &bytes).unwrap();
        let before = contents(directory.path());
        match open(&path) {
            Ok(catalog) => assert_eq!(catalog.view().volumes.len(), view.volumes.len(), "byte {place}"),
            Err(_) => {
                assert!(before == contents(directory.path()), "byte {place}");
                refused += 1;
            }
        }
    }
    assert!(refused > 16, "only {refused} were noticed");
}

#[test]
fn a_row_that_is_not_understood_is_named_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    drop(open(&path).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(r#"INSERT INTO volumes VALUES ('db', '{"v":7}')"#).unwrap();
    // Once while the row is still in the log, as after a crash, and once when it is in the file.
    let (_directory, copy) = crashed(&path);
    assert!(fs::metadata(place::beside(&copy, "-wal")).unwrap().len() > 0);
    drop(connection);
    for path in [copy, path] {
        let text = refusal(&path);
        assert!(text.contains("row volumes/db has the version 7"), "{text}");
    }
}

/// Returns what a power cut at this moment would leave: the file and its log.
fn crashed(path: &Path) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("catalog.db");
    for suffix in ["", "-wal"] {
        fs::copy(place::beside(path, suffix), place::beside(&copy, suffix)).unwrap();
    }
    (directory, copy)
}

#[tokio::test]
async fn a_torn_log_gives_what_was_answered_before_the_tear() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
    let log = place::beside(&path, "-wal");
    let mut steps = vec![(fs::metadata(&log).unwrap().len(), 0)];
    for count in 1..=20 {
        create(&catalog, &format!("v{count}")).await;
        steps.push((fs::metadata(&log).unwrap().len(), count));
    }
    let (copied, copy) = crashed(&path);
    let whole = fs::read(place::beside(&copy, "-wal")).unwrap();
    for (length, count) in steps {
        for torn in [length, length + 1, length + 100].into_iter().filter(|torn| *torn <= whole.len() as u64)
        {
            let (again, copy) = crashed(&copy);
            fs::write(place::beside(&copy, "-wal"), &whole[..usize::try_from(torn).unwrap()]).unwrap();
            let opened = open(&copy).unwrap();
            assert_eq!(opened.view().volumes.len(), count, "cut at {torn} of {}", whole.len());
            drop((opened, again));
        }
    }
    drop(copied);
}

#[tokio::test]
async fn a_confirmation_follows_its_answer_at_the_latest_with_the_next_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
    let unconfirmed = |after: &str| {
        let (_directory, copy) = crashed(&path);
        let view = open(&copy).unwrap().view();
        assert!(
            view.volumes.keys().eq(catalog.view().volumes.keys()),
            "{after}: what was answered is not there"
        );
        view.volumes.values().filter(|volume| volume.unconfirmed.is_some()).count()
    };
    let first = create(&catalog, "first").await;
    assert!(first.unconfirmed.is_none() && catalog.view().volume("first").unwrap().unconfirmed.is_none());
    // Its own confirmation may be under way; that of the one before must be there.
    for text in ["second", "third"] {
        create(&catalog, text).await;
        assert!(unconfirmed(text) <= 1, "after {text}");
    }
    catalog.submit(mount(&first, "web1", "x")).await.unwrap();
    assert_eq!(unconfirmed("mount"), 0);
    // It is stored even if no other change follows.
    create(&catalog, "last").await;
    let patience = Instant::now() + Duration::from_secs(30);
    while unconfirmed("last") > 0 {
        assert!(Instant::now() < patience, "it is never stored");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test]
async fn a_confirmation_waits_for_nobody_while_nothing_is_queued() {
    let directory = tempfile::tempdir().unwrap();
    let catalog: Arc<dyn Catalog> = Arc::new(open(&directory.path().join("catalog.db")).unwrap());
    // The writer may be doing leftover work just then.
    let at_once = async |number: u32| {
        let made = volume(&format!("volume-{number}"));
        catalog.submit(Change::Insert(made.clone())).await.unwrap();
        let published = catalog.submit(Change::Publish(made.name.clone(), made.id)).now_or_never();
        published.is_some_and(|outcome| {
            let after = outcome.unwrap().after.unwrap();
            after.visible && catalog.view().volume(made.name.as_str()) == Some(&after)
        })
    };
    for number in 0..20 {
        if at_once(number).await {
            return;
        }
    }
    panic!("it always waited for the writer");
}

#[tokio::test]
async fn a_caller_that_may_block_commits_its_own_change_while_nothing_is_queued() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
    // The writer may be doing leftover work just then.
    let at_once = (0..20).any(|number| {
        let made = volume(&format!("volume-{number}"));
        catalog.submit_blocking(Change::Insert(made)).now_or_never().is_some_and(|outcome| outcome.is_ok())
    });
    assert!(at_once, "it always waited for the writer");
    let (_directory, copy) = crashed(&path);
    assert_eq!(open(&copy).unwrap().view().volumes.len(), catalog.view().volumes.len(), "it was not durable");
    // Many at once are decided one after the other, whoever commits them, and each name is taken once.
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let catalog = Arc::clone(&catalog);
            let runtime = tokio::runtime::Handle::current();
            std::thread::spawn(move || {
                let insert = |number: u32| Change::Insert(volume(&format!("race-{number}")));
                (0..50)
                    .filter(|number| runtime.block_on(catalog.submit_blocking(insert(*number))).is_ok())
                    .count()
            })
        })
        .collect();
    let made = tokio::task::spawn_blocking(|| {
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(made.await.unwrap(), 50);
    let (_directory, copy) = crashed(&path);
    assert_eq!(open(&copy).unwrap().view().volumes.len(), catalog.view().volumes.len());
    catalog.close().await;
    let closed = catalog.submit_blocking(Change::Insert(volume("late"))).await;
    assert!(matches!(closed, Err(CatalogError::Closed)));
}

#[tokio::test]
async fn a_confirmation_that_finds_no_room_is_not_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let (opened, lock) = file::open(&path).unwrap();
    let _: i64 = opened.writer.query_row("PRAGMA max_page_count = 40", [], |row| row.get(0)).unwrap();
    let catalog: Arc<dyn Catalog> = Arc::new(serve(&path, opened, lock).unwrap());
    let made = volume("db");
    catalog.submit(Change::Insert(made.clone())).await.unwrap();
    fill(&catalog).await;
    // In one transaction with a record that cannot be stored: that change fails, and this one does not.
    let after = catalog.submit(Change::Publish(made.name.clone(), made.id)).await.unwrap().after.unwrap();
    let confirmed = catalog.submit(Change::Confirm(vec![(made.name.clone(), made.id)]));
    let refused = catalog.submit(Change::Insert(large("never")));
    confirmed.await.unwrap();
    assert!(refused.await.is_err());
    assert!(catalog.view().volume("db").unwrap().unconfirmed.is_none());
    catalog.submit(mount(&after, "web1", "x")).await.unwrap();
    let (_directory, copy) = crashed(&path);
    let found = open(&copy).unwrap().view();
    assert_eq!(found.volume("db"), catalog.view().volume("db"));
    assert!(found.volume("never").is_none());
}

#[test]
fn the_oldest_schema_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(include_str!("../../../tests/data/catalog-v1.sql")).unwrap();
    drop(connection);
    let catalog = open(&path).unwrap();
    let view = catalog.view();
    assert_eq!((view.volumes.len(), view.trash.len(), view.hosts.len(), view.backends.len()), (2, 1, 1, 2));
    let db = view.volume("db").unwrap();
    assert!(db.visible && !db.adopted && db.known_to == [host("web1"), host("web2")]);
    assert_eq!(db.options.uid, Some(70));
    assert_eq!(
        db.mounts.iter().map(|m| (m.count, view.stale(m))).collect::<Vec<_>>(),
        [(2, true), (1, false)]
    );
    assert!(view.volume("old-data").unwrap().adopted);
    assert_eq!(view.activation(&host("web1")), Activation(1));
    assert!(view.is_revoked(&host("web1"), "a1"));
    drop(catalog);
    let connection = Connection::open(&path).unwrap();
    assert_eq!(usize::try_from(schema::version(&connection).unwrap()).unwrap(), schema::MIGRATIONS.len());
}

/// Returns a volume whose record is large.
fn large(text: &str) -> Volume {
    let hosts = (0..100).map(|i| host(&format!("host-{i}.of-a-rather-long-domain.example.org")));
    Volume { known_to: hosts.collect(), ..volume(text) }
}

/// Inserts volumes until there is no room, and returns how many fitted.
async fn fill(catalog: &Arc<dyn Catalog>) -> usize {
    for count in 0..10_000 {
        match catalog.submit(Change::Insert(large(&format!("large-{count}")))).await {
            Ok(_) => {}
            Err(CatalogError::Write { location, source }) => {
                assert_eq!(location, catalog.location());
                assert!(source.to_string().contains("full"), "{source}");
                return count;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("it never became full");
}

#[tokio::test]
async fn a_full_catalog_refuses_what_needs_room_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let (opened, lock) = file::open(&path).unwrap();
    let _: i64 = opened.writer.query_row("PRAGMA max_page_count = 40", [], |row| row.get(0)).unwrap();
    let catalog: Arc<dyn Catalog> = Arc::new(serve(&path, opened, lock).unwrap());
    let made = create(&catalog, "db").await;
    let fitted = fill(&catalog).await;
    assert!(fitted > 3);

    let before = catalog.view();
    let first = before.volume("large-0").unwrap();
    // All at once, so that they share one transaction: changes that need no room must not fail because of those that
    // do.
    let changes = [
        Change::Insert(large("more")),
        Change::Publish(first.name.clone(), first.id),
        Change::Insert(large("more")),
        Change::Insert(volume("db")),
        Change::Unmount { name: name("db"), host: host("web9"), id: contract::mount_id("x"), target: None },
    ];
    let submitted: Vec<_> = changes.into_iter().map(|change| catalog.submit(change)).collect();
    let mut results = Vec::new();
    for submitted in submitted {
        results.push(submitted.await);
    }
    assert!(matches!(results[0], Err(CatalogError::Write { .. })));
    assert!(results[1].is_ok());
    assert!(
        matches!(results[2], Err(CatalogError::Write { .. })),
        "the name was not taken by the one before"
    );
    assert!(matches!(results[3], Err(CatalogError::Refused(Refusal::Exists(_)))));
    assert!(results[4].is_ok());
    assert_eq!(catalog.view().volumes.len(), before.volumes.len());
    assert!(catalog.view().volume("large-0").unwrap().visible && !before.volume("large-0").unwrap().visible);

    // Room comes back.
    catalog.submit(remove(first, false)).await.unwrap();
    for hidden in ["large-1", "large-2"] {
        let hidden = before.volume(hidden).unwrap();
        catalog.submit(Change::Withdraw(hidden.name.clone(), hidden.id)).await.unwrap();
    }
    catalog.submit(Change::Insert(large("more"))).await.unwrap();
    catalog.submit(mount(&made, "web2", "x")).await.unwrap();
    let last = catalog.view();
    catalog.close().await;
    drop(catalog);
    let reopened = open(&path).unwrap().view();
    assert!(reopened.volumes.keys().eq(last.volumes.keys()));
    assert_eq!(reopened.volume("db"), last.volume("db"));
}

/// A small file system for one test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts it; `None` if this user may not mount.
    fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", size, "volhost-test"]).arg(directory.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_commit_that_failed_on_a_full_disk_is_not_found_after_a_crash() {
    let Some(disk) = SmallDisk::mount("size=1m") else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let path = disk.0.path().join("catalog.db");
    let filler = disk.0.path().join("filler");
    let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
    let made = create(&catalog, "db").await;
    // Leaves little room: commits fail while they are written to the log.
    fs::write(&filler, vec![0; 300 << 10]).unwrap();
    fill(&catalog).await;
    for _ in 0..3 {
        assert!(catalog.submit(Change::Insert(large("never"))).await.is_err());
        let (_directory, copy) = crashed(&path);
        let found = open(&copy).unwrap().view();
        assert!(found.volumes.keys().eq(catalog.view().volumes.keys()), "memory and disk differ");
    }
    fs::remove_file(&filler).unwrap();
    catalog.submit(mount(&made, "web2", "x")).await.unwrap();
    catalog.submit(Change::Insert(large("now"))).await.unwrap();
    let last = catalog.view();
    catalog.close().await;
    drop(catalog);
    let reopened = open(&path).unwrap().view();
    assert!(reopened.volumes.keys().eq(last.volumes.keys()));
    assert_eq!(reopened.volume("db"), last.volume("db"));
}

#[tokio::test]
async fn the_log_is_moved_into_the_file_while_serving() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
    let before = fs::metadata(&path).unwrap().len();
    let submitted: Vec<_> =
        (0..3000).map(|i| catalog.submit(Change::Insert(volume(&format!("v{i}"))))).collect();
    for submitted in submitted {
        submitted.await.unwrap();
    }
    let patience = Instant::now() + Duration::from_secs(30);
    while fs::metadata(&path).unwrap().len() == before {
        assert!(Instant::now() < patience, "nothing was moved");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the writer has done something on its own.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn files_that_come_back_are_not_trusted_with_what_was_refused_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let (path, away) = (directory.path().join("catalog.db"), directory.path().join("away.db"));
    let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
    create(&catalog, "before").await;
    let move_files = |from: &Path, to: &Path| {
        for suffix in ["", "-wal", "-shm"] {
            fs::rename(place::beside(from, suffix), place::beside(to, suffix)).unwrap();
        }
    };
    move_files(&path, &away);
    fs::write(&path, "somebody's").unwrap();
    let refused = catalog.submit(Change::Insert(volume("refused"))).await.unwrap_err();
    assert!(chain(&refused).contains("was replaced by another file"), "{}", chain(&refused));
    assert!(catalog.fault().is_some() && catalog.view().volume("refused").is_none());
    // The writer finds its own files again, but does not trust them any more.
    fs::remove_file(&path).unwrap();
    move_files(&away, &path);
    until("the catalog to be well", || catalog.fault().is_none()).await;
    create(&catalog, "after").await;
    let (_directory, copy) = crashed(&path);
    let names: Vec<_> = open(&copy).unwrap().view().volumes.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["after", "before"]);
    catalog.close().await;
    assert_eq!(open(&path).unwrap().view().volumes.len(), 2);
}

#[tokio::test]
async fn a_lock_that_was_lost_to_another_process_ends_all_writing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let catalog: Arc<dyn Catalog> = Arc::new(open(&path).unwrap());
    fs::remove_file(place::beside(&path, ".lock")).unwrap();
    let other = Lock::take(&path).unwrap();
    let before = fs::read(&path).unwrap();
    let refused = catalog.submit(Change::Insert(volume("refused"))).await.unwrap_err();
    assert!(chain(&refused).contains("in use by process"), "{}", chain(&refused));
    assert_eq!(fs::read(&path).unwrap(), before);
    drop(other);
    create(&catalog, "db").await;
    let text = chain(&open(&path).unwrap_err());
    assert!(text.contains("in use by process"), "{text}");
    catalog.close().await;
    assert_eq!(open(&path).unwrap().view().volumes.len(), 1);
}
