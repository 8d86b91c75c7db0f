//! Reads a catalog whole, page by page, as it was at one revision.
//!
//! It must never skip a key that it does not understand: a catalog is read whole or not at all.

use std::collections::HashMap;

use etcd_client::GetOptions;

use super::memory::Snapshot;
use crate::catalog::etcd::client::{LARGEST, Reader};
use crate::catalog::etcd::error::OpenError;
use crate::catalog::etcd::keys::Key;
use crate::catalog::record::Loader;

/// The number of keys in a page. With records of the usual size a page is one or two megabytes.
const PAGE: i64 = 4000;

/// Reads everything at one revision; starts again if that revision was compacted meanwhile.
pub(crate) async fn read(reader: &Reader<'_>) -> Result<Snapshot, OpenError> {
    loop {
        if let Some(snapshot) = read_at_once(reader).await? {
            return Ok(snapshot);
        }
        log::debug!("the catalog {} was compacted while it was read: it is read again", reader.location);
    }
}

/// Reads everything at one revision. Returns `None` if that revision was compacted meanwhile.
async fn read_at_once(reader: &Reader<'_>) -> Result<Option<Snapshot>, OpenError> {
    let mut loader = Loader::default();
    let (mut revisions, mut claims, mut head) = (HashMap::new(), HashMap::new(), None);
    let (mut next, mut revision) = (reader.keys.root().to_owned().into_bytes(), 0);
    loop {
        let mut options = GetOptions::new().with_range(reader.keys.end_of_shared()).with_limit(PAGE);
        if revision > 0 {
            options = options.with_revision(revision);
        }
        let from = next.clone();
        let page =
            reader
                .ask(|client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move {
                        client.kv_client().max_decoding_message_size(LARGEST).get(from, Some(options)).await
                    }
                })
                .await?;
        let Some(page) = page else { return Ok(None) };
        if revision == 0 {
            revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
        }
        for pair in page.kvs() {
            match reader.keys.parse(pair.key()) {
                Key::Row(table, parts) => {
                    let parts: Vec<_> = parts.iter().map(String::as_str).collect();
                    loader
                        .take(table, &parts, &String::from_utf8_lossy(pair.value()))
                        .map_err(|source| OpenError::Row { location: reader.location.to_owned(), source })?;
                    let key = String::from_utf8_lossy(pair.key()).into_owned().into_boxed_str();
                    revisions.insert(key, pair.mod_revision());
                }
                Key::Claim(id) => {
                    if let Ok(claim) = serde_json::from_slice(pair.value()) {
                        claims.insert(id, (claim, pair.mod_revision()));
                    }
                }
                Key::Import => {
                    return Err(OpenError::HalfImported { location: reader.location.to_owned() });
                }
                Key::Head => head = Some((pair.mod_revision(), pair.value().to_vec())),
                Key::Instance(_) | Key::Private | Key::Format => {}
                Key::Unknown => {
                    return Err(OpenError::Foreign {
                        location: reader.location.to_owned(),
                        key: String::from_utf8_lossy(pair.key()).into_owned(),
                    });
                }
            }
        }
        match page.kvs().last() {
            Some(last) if page.more() => {
                next = last.key().to_vec();
                next.push(0);
            }
            _ => break,
        }
    }
    let view =
        loader.finish().map_err(|source| OpenError::Row { location: reader.location.to_owned(), source })?;
    Ok(Some(Snapshot { view, revisions, claims, head, revision }))
}
