//! The answer to List, which may be large: it is written in parts, as the engine reads them.

use futures_util::{StreamExt as _, stream};

use super::wire::wire;
use crate::host::Caller;
use crate::protocol::envelope::Answer;
use crate::volume::{List, Service};

/// The size of one part of a long list, in bytes: it bounds the time and memory that one request takes at
/// once. A shorter list is answered in one piece.
const PART_BYTES: usize = 64 * 1024;

pub(super) async fn list(service: &Service, caller: &Caller) -> Answer {
    let mut told = ListWriter { list: service.list(caller).await, any: false };
    let mut text = br#"{"Volumes":["#.to_vec();
    match told.part(&mut text) {
        Ok(false) => Answer::Json(text.into()),
        Ok(true) => {
            let rest = stream::unfold(Some(told), |told| async move {
                let mut told = told?;
                let mut text = Vec::new();
                Some(match told.part(&mut text) {
                    Ok(more) => (Ok(text.into()), more.then_some(told)),
                    // The answer has begun, so it breaks off; no client takes it for a whole one.
                    Err(error) => (Err(error), None),
                })
            });
            Answer::Parts(Box::pin(stream::once(async { Ok(text.into()) }).chain(rest)))
        }
        Err(error) => Answer::unwritten(&error),
    }
}

/// Writes a list as JSON, part by part.
struct ListWriter {
    list: List,
    any: bool,
}

impl ListWriter {
    /// Writes volumes until the part is full, and the end after the last volume. Returns true if volumes may
    /// be left.
    fn part(&mut self, text: &mut Vec<u8>) -> serde_json::Result<bool> {
        let mut written = Ok(());
        let any = &mut self.any;
        let more = self.list.more(|seen| {
            if std::mem::replace(any, true) {
                text.push(b',');
            }
            written = serde_json::to_writer(&mut *text, &wire(&seen, None));
            written.is_ok() && text.len() < PART_BYTES
        });
        written?;
        if !more {
            text.extend_from_slice(b"]}");
        }
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::super::tests::no_backends;
    use super::*;
    use crate::catalog::{self, Catalog, Change, sqlite};
    use crate::host::Via;
    use crate::model::backend::BackendName;
    use crate::model::host::HostName;
    use crate::model::mounts::Ledger;
    use crate::model::options::Options;
    use crate::model::volume::{VolumeId, VolumeName};

    /// Makes each of `counts` volumes in turn and lists them each time. Returns the number of parts and the
    /// names.
    async fn listed(counts: impl IntoIterator<Item = usize>) -> Vec<(usize, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        let catalog: Arc<dyn Catalog> = Arc::new(sqlite::open(&dir.path().join("catalog.db")).unwrap());
        let service = Service::new(Arc::clone(&catalog), no_backends());
        let caller = Caller { host: HostName::parse("node1").unwrap(), via: Via::Admin, address: None };
        let mut made = 0;
        let mut all = Vec::new();
        for count in counts {
            while made < count {
                let name = VolumeName::parse(&format!("volume-{made:06}")).unwrap();
                let id = VolumeId::random();
                let volume = catalog::Volume {
                    id,
                    name: name.clone(),
                    backend: BackendName::parse("default").unwrap(),
                    options: Options::default(),
                    created_at: time::OffsetDateTime::UNIX_EPOCH,
                    adopted: false,
                    known_to: vec![caller.host.clone()],
                    mounts: Ledger::default(),
                    visible: false,
                    unconfirmed: None,
                };
                drop(catalog.submit(Change::Insert(volume)));
                let published = catalog.submit(Change::Publish(name, id));
                made += 1;
                if made == count {
                    published.await.unwrap();
                }
            }
            let parts: Vec<_> = match list(&service, &caller).await {
                Answer::Json(text) => vec![text],
                Answer::Parts(parts) => parts.map(Result::unwrap).collect().await,
                _ => panic!("a list is never refused"),
            };
            let text = parts.concat();
            let answer: Value = serde_json::from_slice(&text).unwrap();
            let names = answer["Volumes"].as_array().unwrap().iter();
            let names = names.map(|volume| volume["Name"].as_str().unwrap().to_owned()).collect();
            all.push((parts.len(), names));
        }
        all
    }

    #[tokio::test]
    async fn a_list_is_whole_in_however_many_parts_it_is_told() {
        // Counts around those at which a part is full: the end then comes in a part of its own.
        let counts: Vec<_> = [0, 1].into_iter().chain(730..760).chain([5000]).collect();
        let lists = listed(counts.iter().copied()).await;
        for ((parts, names), count) in lists.iter().zip(&counts) {
            let expected: Vec<_> = (0..*count).map(|number| format!("volume-{number:06}")).collect();
            assert_eq!(*names, expected, "{count} volumes in {parts} parts");
        }
        assert_eq!(lists[0].0, 1, "a short list is answered whole");
        assert!(
            lists.iter().any(|(parts, _)| *parts == 2),
            "{:?}",
            lists.iter().map(|(p, _)| p).collect::<Vec<_>>()
        );
        assert!(lists.last().unwrap().0 > 4);
    }
}
