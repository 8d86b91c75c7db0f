//! A client's certificate, in DER: who it says somebody is.

use volhost::host::identity::{host_name, identity, not_after, serial};
use volhost::model::host::HostName;

/// Reads a certificate. A host's name is a plain one, never a wildcard and never the reserved name, and the verifier of
/// the TLS handshake, which reads certificates with a parser of its own, sees the same name.
pub fn run(der: &[u8]) {
    let Ok(read) = identity(der) else {
        // What names nobody names nobody by the other way either, and costs no panic in the parts.
        let (_, _) = (serial(der), not_after(der));
        assert!(host_name(der).is_err(), "only one of two readings names a host");
        return;
    };
    let name = read.host.as_str();
    assert_eq!(host_name(der).as_ref(), Ok(&read.host));
    assert_eq!(HostName::parse(name).as_ref(), Ok(&read.host), "{name:?} is not read back");
    assert!(!read.host.is_anonymous(), "a certificate gave the name of those who have none");
    assert!(name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-')), "{name:?}");

    assert_eq!(serial(der).as_ref(), Ok(&read.serial));
    assert!(read.serial == "0" || !read.serial.starts_with('0'), "{}", read.serial);
    assert!(read.serial.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')), "{}", read.serial);
    assert_eq!(not_after(der), Ok(read.not_after));

    let der = rustls::pki_types::CertificateDer::from(der);
    if let Ok(verified) = webpki::EndEntityCert::try_from(&der)
        && let Some(first) = verified.valid_dns_names().next()
    {
        assert_eq!(first.to_ascii_lowercase(), name, "the handshake's parser sees another first name");
    }
}
