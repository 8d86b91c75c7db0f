//! Checks that a file system has space left: bytes and files (inodes).

use humansize::{BINARY, format_size};
use serde::{Deserialize, Serialize};

use super::{Finding, Verdict};

const CHECK: &str = "space";

/// Free space is scarce below one part in this many; there the trash is emptied early.
const SCARCE: u64 = 10;

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Space {
    /// The size, in bytes.
    pub total_bytes: u64,
    /// The bytes that unprivileged users can still write.
    pub free_bytes: u64,
    /// The maximum number of files; 0 if there is no such limit or it is not reported.
    pub total_files: u64,
    /// The number of files that can still be made.
    pub free_files: u64,
}

impl Space {
    /// Asks the file system of a path. Blocks if the file system hangs.
    pub(super) fn of(path: &std::path::Path) -> rustix::io::Result<Self> {
        let told = rustix::fs::statvfs(path)?;
        Ok(Self {
            total_bytes: told.f_blocks.saturating_mul(told.f_frsize),
            free_bytes: told.f_bavail.saturating_mul(told.f_frsize),
            total_files: told.f_files,
            free_files: told.f_favail,
        })
    }
}

/// Judges by the scarcer of bytes and files. `used_for` completes the phrase "free for …".
pub(super) fn judge(path: &str, space: Space, used_for: &str) -> Finding {
    let Space { total_bytes, free_bytes, total_files, free_files } = space;
    let bytes = format!("{} of {}", format_size(free_bytes, BINARY), format_size(total_bytes, BINARY));
    let files = format!("{free_files} of {total_files} files (inodes)");
    let (bytes_state, files_state) = (state(total_bytes, free_bytes), state(total_files, free_files));
    let (verdict, scarce) =
        if files_state > bytes_state { (files_state, &files) } else { (bytes_state, &bytes) };
    let message = match verdict {
        Verdict::Wrong => format!("nothing is free for {used_for}: {scarce}"),
        Verdict::Warning => format!("little is free for {used_for}: {scarce}"),
        Verdict::Ok | Verdict::Note | Verdict::Skipped => {
            return Finding::new(CHECK, path, Verdict::Ok, format!("{bytes} free for {used_for}"));
        }
    };
    Finding::new(CHECK, path, verdict, message).remedy(
        "remove what is not needed (removed volumes: `volhost volume rm --now`), or enlarge the file system",
    )
}

fn state(total: u64, free: u64) -> Verdict {
    match (total, free) {
        // There is no limit, or it is not reported.
        (0, _) => Verdict::Ok,
        (_, 0) => Verdict::Wrong,
        _ if free.saturating_mul(SCARCE) < total => Verdict::Warning,
        _ => Verdict::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_bytes_and_files_counts() {
        let judge = |total_bytes, free_bytes, total_files, free_files| {
            let finding = judge("/x", Space { total_bytes, free_bytes, total_files, free_files }, "volumes");
            (finding.verdict, finding.message)
        };
        assert_eq!(judge(1000, 100, 0, 0).0, Verdict::Ok);
        assert_eq!(judge(1000, 99, 100, 100).0, Verdict::Warning);
        assert_eq!(judge(1000, 0, 100, 1).0, Verdict::Wrong);
        let (verdict, message) = judge(1000, 500, 100, 9);
        assert_eq!(verdict, Verdict::Warning);
        assert!(message.contains("9 of 100 files"), "{message}");
        assert_eq!(judge(1000, 500, 100, 0).0, Verdict::Wrong);
    }
}
