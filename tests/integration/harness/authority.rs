//! Somebody else's certificate authority, as an administrator who has one brings it along: its certificates, keys and
//! revocation lists.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use time::OffsetDateTime;

use super::http::Identity;

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one of that name.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        Self(CertifiedIssuer::self_signed(params, key).expect("it can be signed"))
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server on this machine.
    pub(crate) fn server(&self) -> Pair {
        self.server_of(None)
    }

    /// The same, which ends or ended at a certain time.
    pub(crate) fn server_until(&self, end: OffsetDateTime) -> Pair {
        self.server_of(Some(end))
    }

    fn server_of(&self, end: Option<OffsetDateTime>) -> Pair {
        self.issue("localhost", |params| {
            params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.not_after = end.unwrap_or(params.not_after);
        })
    }

    /// A certificate for a server at these addresses, which calls others of its kind with it.
    pub(crate) fn member(&self, addresses: &[IpAddr]) -> Pair {
        self.issue("localhost", |params| {
            params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        })
    }

    /// A client's certificate with that serial number.
    pub(crate) fn client(&self, name: &str, serial: u8) -> Pair {
        self.issue(name, |params| params.serial_number = Some(SerialNumber::from_slice(&[serial])))
    }

    /// A client's certificate that ended already.
    pub(crate) fn expired(&self, name: &str, end: OffsetDateTime) -> Pair {
        self.issue(name, |params| params.not_after = end)
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("the name is valid");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.0).expect("it can be signed");
        Pair { cert: certificate.pem(), key: key.serialize_pem() }
    }

    /// The list of the serial numbers that were taken back.
    pub(crate) fn crl(&self, serials: &[u8]) -> String {
        self.crl_of(serials, 1, OffsetDateTime::now_utc())
    }

    /// The same, with its number and the time when it was made.
    pub(crate) fn crl_of(&self, serials: &[u8], number: u8, made: OffsetDateTime) -> String {
        let revoked = |serial: &u8| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[*serial]),
            revocation_time: from_now(-1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: made,
            next_update: from_now(30),
            crl_number: SerialNumber::from_slice(&[number]),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).expect("it can be signed").pem().expect("it can be written")
    }
}

/// The certificate (PEM) of a server whose year ends in a week, signed by the authority of these files.
pub(crate) fn server_near_its_end(ca: &str, ca_key: &str, key: &str, names: &[&str]) -> String {
    let key_of = |pem| KeyPair::from_pem(pem).expect("the file holds a key");
    let issuer = Issuer::from_ca_cert_pem(ca, key_of(ca_key)).expect("the file holds a CA");
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("the names are valid");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (params.not_before, params.not_after) = (from_now(-358), from_now(7));
    params.signed_by(&key_of(key), &issuer).expect("it can be signed").pem()
}

impl Pair {
    /// Writes the pair into a directory, beside the authority that the server's certificate comes from.
    pub(crate) fn keep(&self, directory: &Path, name: &str, server_ca: &str) -> Identity {
        std::fs::create_dir_all(directory).expect("the directory can be made");
        let keep = |ending: &str, text: &str| {
            let path = directory.join(format!("{name}.{ending}"));
            std::fs::write(&path, text).expect("a file can be written");
            path
        };
        Identity { ca: keep("ca", server_ca), cert: keep("crt", &self.cert), key: keep("key", &self.key) }
    }
}

/// A number of days from now, or ago.
pub(crate) fn from_now(days: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::days(days)
}
