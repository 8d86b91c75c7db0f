//! Why a shared catalog was not opened, and what to do about it.

/// Why a shared catalog was not opened. Nothing in the cluster was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The cluster does not let this instance in.
    #[error("the catalog {location} does not let this instance in")]
    Refused {
        /// Where the catalog lies.
        location: String,
    },
}
