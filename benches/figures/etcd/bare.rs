//! The floor of what volhost writes into etcd: the same transactions, as they were seen to be made, without volhost.

use std::collections::{BTreeMap, HashMap};

use etcd_client::{Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp, WatchOptions, WatchStream};

/// What volhost's keys begin with, and what the floor's do: as long.
pub(super) const OURS: &str = "volhost";
const BARE: &str = "without";

/// A key, and what is put there; nothing, where it is deleted.
#[derive(Debug, Clone)]
struct Write {
    key: String,
    value: Option<String>,
    leased: bool,
}

/// One transaction as volhost was seen to make it.
#[derive(Debug, Clone)]
struct Seen {
    writes: Vec<Write>,
    /// What it compares beside what it writes.
    compared: Vec<String>,
}

/// What volhost was seen to make of one volume.
#[derive(Debug, Clone)]
pub(super) struct Recording {
    name: String,
    id: String,
    create: Vec<Seen>,
    mount: Vec<Seen>,
}

/// What happens to the catalog while something is done.
pub(super) struct Recorder {
    client: Client,
    watch: WatchStream,
}

impl Recorder {
    /// Begins.
    pub(super) async fn begin(mut client: Client) -> Self {
        let options = WatchOptions::new().with_prefix();
        let mut watch = client.watch(format!("/{OURS}/"), Some(options)).await.expect("etcd answers");
        // It says that it has begun.
        watch.message().await.expect("etcd answers");
        Self { client, watch }
    }

    /// Ends, after a volume was created, mounted and unmounted.
    pub(super) async fn end(mut self, name: &str) -> Recording {
        let head = self.client.get(format!("/{OURS}/head"), None).await.expect("etcd answers");
        let head = head.kvs().first().expect("volhost made it").mod_revision();
        let mut all: BTreeMap<i64, Vec<Write>> = BTreeMap::new();
        while all.last_key_value().is_none_or(|(revision, _)| *revision < head) {
            let message = self.watch.message().await.expect("etcd answers").expect("the watch goes on");
            for event in message.events() {
                let pair = event.kv().expect("it is of a key");
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let value = (event.event_type() == EventType::Put).then(|| text(pair.value()));
                let write = Write { key: text(pair.key()), value, leased: pair.lease() != 0 };
                all.entry(pair.mod_revision()).or_default().push(write);
            }
        }
        let row = format!("/{OURS}/volumes/{name}");
        let record = all.values().flatten().filter(|write| write.key == row).find_map(|w| w.value.as_ref());
        let record: serde_json::Value =
            record.and_then(|text| serde_json::from_str(text).ok()).expect("it was created");
        let id = record.get("id").and_then(serde_json::Value::as_str).expect("it has an ID").to_owned();
        let mut recording = Recording { name: name.into(), create: Vec::new(), mount: Vec::new(), id };
        let moving = format!("/{OURS}/moving/{}", recording.id);
        for writes in all.into_values() {
            let mount = writes.iter().find(|write| write.key.contains(&format!("/mounts/{name}/")));
            // As the rules look at them; what is written is compared, too.
            if let Some(mount) = mount {
                let mut compared = vec![row.clone(), format!("/{OURS}/hosts/bench")];
                compared.extend(mount.value.is_some().then(|| moving.clone()));
                recording.mount.push(Seen { writes, compared });
            } else if writes.iter().any(|write| write.key == row || write.key == moving) {
                recording.create.push(Seen { writes, compared: vec![row.clone(), moving.clone()] });
            }
        }
        assert!(!recording.create.is_empty() && !recording.mount.is_empty(), "nothing was seen");
        recording
    }
}

/// Who makes the same transactions, one after the other.
pub(super) struct Bare {
    client: Client,
    who: usize,
    lease: i64,
    recording: Recording,
    /// The revisions of the keys that it has written.
    revisions: HashMap<String, i64>,
    made: u64,
    /// The volume that it is at.
    name: String,
    id: String,
}

impl Bare {
    /// As many as are to work at the same time, over one channel. Their volumes are numbered from `made`.
    pub(super) async fn several(
        mut client: Client,
        recording: &Recording,
        count: usize,
        made: u64,
    ) -> Vec<Self> {
        let lease = client.lease_grant(600, None).await.expect("etcd answers").id();
        let mut all = Vec::new();
        for who in 0..count {
            let mut bare = Self {
                client: client.clone(),
                who,
                lease,
                recording: recording.clone(),
                revisions: HashMap::new(),
                made,
                name: String::new(),
                id: String::new(),
            };
            // A slot that was written before.
            for seen in recording.create.iter().flat_map(|seen| &seen.writes) {
                let key = bare.replaced(&seen.key);
                if key.contains("/~slots/") {
                    let put = bare.client.put(key.clone(), "", None).await.expect("etcd answers");
                    bare.revisions.insert(key, put.header().expect("it has one").revision());
                }
            }
            all.push(bare.create().await);
        }
        all
    }

    /// Makes another volume.
    pub(super) async fn create(mut self) -> Self {
        self.made += 1;
        let (made, who, width) = (self.made, self.who, self.recording.name.len().saturating_sub(3));
        self.name = format!("{who:02}-{made:0width$}");
        self.id = uuid::Uuid::new_v4().to_string();
        for seen in self.recording.create.clone() {
            self.make(&seen).await;
        }
        self
    }

    /// Mounts and unmounts the volume that it made last.
    pub(super) async fn mount_and_unmount(mut self) -> Self {
        for seen in self.recording.mount.clone() {
            self.make(&seen).await;
        }
        self
    }

    async fn make(&mut self, seen: &Seen) {
        let (mut compared, mut writes, mut slot) = (Vec::new(), Vec::new(), None);
        let mut written = Vec::new();
        for Write { key, value, leased } in &seen.writes {
            let key = self.replaced(key);
            if key.contains("/~slots/") {
                slot = Some(key.clone());
            }
            // Everybody writes it, and nobody compares it.
            if !key.ends_with("/head") {
                compared.push(key.clone());
            }
            let options = leased.then(|| PutOptions::new().with_lease(self.lease));
            writes.push(match value {
                Some(value) => TxnOp::put(key.clone(), self.replaced(value), options),
                None => TxnOp::delete(key.clone(), None),
            });
            written.push((key, value.is_some()));
        }
        for key in &seen.compared {
            let key = self.replaced(key);
            if !compared.contains(&key) {
                compared.push(key);
            }
        }
        let same = |key: String| {
            let revision = self.revisions.get(&key).copied().unwrap_or_default();
            Compare::mod_revision(key, CompareOp::Equal, revision)
        };
        let compares: Vec<_> = compared.into_iter().map(same).collect();
        let question = Txn::new().when(compares).and_then(writes);
        let question =
            question.or_else(slot.map(|slot| TxnOp::get(slot, None)).into_iter().collect::<Vec<_>>());
        let answer = self.client.txn(question).await.expect("etcd answers");
        assert!(answer.succeeded(), "nobody else writes these keys");
        let revision = answer.header().expect("it has one").revision();
        for (key, put) in written {
            if put {
                self.revisions.insert(key, revision);
            } else {
                self.revisions.remove(&key);
            }
        }
    }

    /// The same text of this one's own volume, slot and part of etcd.
    fn replaced(&self, text: &str) -> String {
        let text = text.replace(&self.recording.name, &self.name).replace(&self.recording.id, &self.id);
        let Some(rest) = text.strip_prefix(&format!("/{OURS}/")) else { return text };
        match rest.strip_prefix("~slots/").and_then(|slot| slot.rsplit_once('/')) {
            Some((instance, _)) => format!("/{BARE}/~slots/{instance}/{:02}", self.who),
            None => format!("/{BARE}/{rest}"),
        }
    }
}

/// Reads all of volhost's keys at one revision, page by page; returns how many there are.
pub(super) async fn read_all(client: Client) -> usize {
    // As large as volhost's pages.
    const PAGE: i64 = 4000;
    let (mut next, end) = (format!("/{OURS}/").into_bytes(), format!("/{OURS}0"));
    let (mut revision, mut keys) = (0, 0);
    loop {
        let mut options = etcd_client::GetOptions::new().with_range(end.clone()).with_limit(PAGE);
        if revision > 0 {
            options = options.with_revision(revision);
        }
        let mut kv = client.kv_client().max_decoding_message_size(256 << 20);
        let page = kv.get(next.clone(), Some(options)).await.expect("etcd answers");
        if revision == 0 {
            revision = page.header().expect("it has one").revision();
        }
        keys += page.kvs().len();
        match page.kvs().last() {
            Some(last) if page.more() => {
                next = last.key().to_vec();
                next.push(0);
            }
            _ => return keys,
        }
    }
}
