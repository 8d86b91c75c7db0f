//! The names of volhost's own files and directories below a backend's root.

/// The directory below a root that belongs to volhost.
pub(super) const META_DIR: &str = ".volhost";

/// The directory in [`META_DIR`] where volumes are made.
pub(super) const NEW: &str = "new";

/// The directory in [`META_DIR`] that holds removed volumes.
pub(super) const TRASH: &str = "trash";

/// The prefix of a directory in [`META_DIR`] whose deletion has begun; the volume's ID follows.
pub(super) const DELETING_PREFIX: &str = "deleting-";

/// The identity file in [`META_DIR`].
pub(super) const IDENTITY: &str = "backend.json";

/// The prefix of the identity file while it is being written. Each attempt has its own name, because two instances that
/// share the storage may give the same directory its identity at the same moment.
pub(super) const UNFINISHED_IDENTITY: &str = "backend.json.new";
