//! Checks of the file system under a directory: programs that run with another user's rights, and the
//! journal.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use serde::{Deserialize, Serialize};

use super::{Finding, Verdict, shown};

const SETUID: &str = "setuid";
const JOURNAL: &str = "journal";

/// The type of ext2, ext3 and ext4 in `statfs(2)`.
const EXT: u64 = 0xEF53;

/// The facts about a directory's file system. A fact is `None` if it cannot be found out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct FileSystem {
    /// True if it is mounted with `nosuid`.
    nosuid: Option<bool>,
    /// The directory, or one above it, whose mode keeps the users of this machine out.
    closed_by: Option<PathBuf>,
    /// True if an ext4 file system has a journal.
    journal: Option<bool>,
}

impl FileSystem {
    /// Examines the file system of a directory. Blocks if the file system hangs.
    #[must_use]
    pub(super) fn of(directory: &Path) -> Self {
        let flags = rustix::fs::statvfs(directory).map(|told| told.f_flag);
        Self {
            nosuid: flags.ok().map(|flags| flags.contains(StatVfsMountFlags::NOSUID)),
            closed_by: closed_by(directory),
            journal: has_journal(directory),
        }
    }

    /// Judges whether a program in a volume can give a user of this machine another user's rights.
    pub(super) fn judge_setuid(&self, directory: &Path) -> Option<Finding> {
        let finding = |verdict, message: String| Finding::new(SETUID, shown(directory), verdict, message);
        Some(match (self.nosuid?, &self.closed_by) {
            (true, _) => finding(
                Verdict::Ok,
                "it is mounted with `nosuid`: no program in a volume runs with another user's rights".into(),
            ),
            (false, Some(closed)) => finding(
                Verdict::Note,
                format!(
                    "it is mounted without `nosuid`, and the mode of {} alone keeps the users of this machine from \
                     set-user-ID programs in volumes",
                    closed.display()
                ),
            ),
            (false, None) => finding(
                Verdict::Warning,
                "it is mounted without `nosuid` and open to the users of this machine, who can run a set-user-ID \
                 program that somebody put into a volume"
                    .into(),
            )
            .remedy(format!(
                "`chmod o-rwx {}` (engines pass as root), or mount its file system with `nosuid`",
                directory.display()
            )),
        })
    }

    /// Judges whether durable writes survive a power cut. `what` names the data in the directory.
    pub(super) fn judge_journal(&self, directory: &Path, what: &str) -> Option<Finding> {
        if self.journal? {
            return None;
        }
        let message = format!("ext4 without a journal: a power cut may take {what} that were durable");
        let remedy = "unmount it, and `tune2fs -O has_journal DEVICE`; until then the promise about power cuts does not \
                      hold";
        Some(Finding::new(JOURNAL, shown(directory), Verdict::Warning, message).remedy(remedy))
    }
}

/// Returns the outermost directory on the path, the directory itself included, that users cannot pass if they
/// neither own it nor are in its group.
fn closed_by(directory: &Path) -> Option<PathBuf> {
    let real = directory.canonicalize().ok()?;
    let way: Vec<_> = real.ancestors().collect();
    let is_closed = |path: &&Path| path.metadata().is_ok_and(|found| found.mode() & 0o001 == 0);
    way.into_iter().rev().find(is_closed).map(Path::to_path_buf)
}

fn has_journal(directory: &Path) -> Option<bool> {
    let told = rustix::fs::statfs(directory).ok()?;
    if u64::try_from(told.f_type).ok()? != EXT {
        return None;
    }
    let device = directory.metadata().ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let task = Path::new("/sys/fs/ext4").join(link.file_name()?).join("journal_task");
    // The file holds the kernel thread that writes the journal, or this text if there is none.
    Some(std::fs::read_to_string(task).ok()?.trim() != "<none>")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_lets_users_run_set_user_id_programs_is_a_warning() {
        let at = Path::new("/srv/volumes");
        let judged = |nosuid, closed: Option<&str>| {
            let file_system = FileSystem { nosuid, closed_by: closed.map(PathBuf::from), journal: None };
            file_system.judge_setuid(at).map(|finding| (finding.verdict, finding.remedy.is_some()))
        };
        assert_eq!(judged(Some(true), None), Some((Verdict::Ok, false)));
        assert_eq!(judged(Some(false), Some("/srv/volumes")), Some((Verdict::Note, false)));
        assert_eq!(judged(Some(false), None), Some((Verdict::Warning, true)));
        assert_eq!(judged(None, None), None);
    }

    #[test]
    fn only_ext4_without_a_journal_is_a_warning() {
        let judged = |journal| {
            FileSystem { journal, ..FileSystem::default() }.judge_journal(Path::new("/srv"), "volumes")
        };
        assert_eq!(judged(Some(false)).map(|finding| finding.verdict), Some(Verdict::Warning));
        assert_eq!((judged(Some(true)), judged(None)), (None, None));
    }

    #[test]
    fn a_directory_is_closed_by_the_first_mode_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().canonicalize().unwrap().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        // Temporary directories are accessible only for their owner.
        set(dir.path(), 0o755);
        let above = closed_by(&deep);
        set(&deep, 0o710);
        if above.is_none() {
            assert_eq!(closed_by(&deep), Some(deep.clone()));
            set(deep.parent().unwrap(), 0o750);
            assert_eq!(closed_by(&deep).as_deref(), deep.parent());
        } else {
            assert_eq!(closed_by(&deep), above);
        }
    }
}
