//! The faults in files that engines read. The text of each says what is wrong, how an engine reacts, and what
//! the remedy is.

use std::path::PathBuf;

/// A fault of one file. Its text does not repeat the file's path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The directory cannot be listed.
    #[error(
        "it cannot be read as a directory ({why}), so that nothing in it is known here; name one that exists"
    )]
    NoDirectory {
        /// The system's error.
        why: String,
    },
    /// An engine finds another file first, so it never reads this one.
    #[error("no engine reads it: {} is found first; remove the one that is not meant", by.display())]
    Shadowed {
        /// The file that is read.
        by: PathBuf,
    },
    /// A symlink leads to nothing, and an engine ignores it.
    #[error("it leads nowhere, and engines pass it over; put back what it points to, or remove it")]
    Dangling,
    /// A file that is not a socket has a socket's name.
    #[error("it is no socket, and engines pass it over; remove it")]
    NotASocket,
    /// A socket is in a directory in which engines look only for spec files.
    #[error(
        "engines look for sockets in /run/docker/plugins only; name it in a .spec file here, as unix://PATH"
    )]
    SocketElsewhere,
    /// The spec file cannot be read.
    #[error(
        "it cannot be read ({why}), and no other file is taken in its place; mend or remove it, or run this as the engine's user"
    )]
    Unreadable {
        /// The system's error.
        why: String,
    },
    /// The spec file is not JSON, or its JSON has the wrong shape.
    #[error("an engine cannot read it as JSON: {why}; `volhost spec show` prints one that is right")]
    BadJson {
        /// The description of the error.
        why: String,
    },
    /// Text follows the JSON object.
    #[error("something stands behind its first JSON object, which engines pass over; remove it")]
    Trailing,
    /// Engines do not know the field.
    #[error("no engine knows the field {field}{}; remove or correct it", hint(meant.as_deref()))]
    UnknownField {
        /// The field.
        field: String,
        /// The field that was probably meant.
        meant: Option<String>,
    },
    /// The name in the file differs from the file's name.
    #[error(
        "it says Name {inside:?}, but the file's name is what engines go by: the plugin is {outside:?}; let both be the same"
    )]
    OtherName {
        /// The name in the file.
        inside: String,
        /// The file's name without its extension.
        outside: String,
    },
    /// The address is missing, or no engine can call it.
    #[error(
        "an engine cannot use the address {address:?}: {why}; it takes https://HOST:PORT, tcp://HOST:PORT or unix:///PATH"
    )]
    BadAddress {
        /// The address.
        address: String,
        /// The description of the error.
        why: &'static str,
    },
    /// An engine neither knows nor refuses the scheme.
    #[error(
        "the scheme {scheme}:// is none of https, tcp, http and unix, and an engine takes it for plain TCP; write what is meant"
    )]
    WrongScheme {
        /// The scheme.
        scheme: String,
    },
    /// The address has no port.
    #[error("the address {address:?} has no port, so that engines call port {port}; write the port")]
    NoPort {
        /// The address.
        address: String,
        /// The port that engines call instead.
        port: u16,
    },
    /// The address has a path, a query or another part that an engine drops.
    #[error("engines drop all of {address:?} but scheme, host and port; remove the rest")]
    Ignored {
        /// The address.
        address: String,
    },
    /// TLS files are given for a connection without TLS.
    #[error(
        "TLSConfig is there, but TLS is off: only the scheme https turns it on, and engines call {address} in plain text; write https://"
    )]
    TlsOff {
        /// The address.
        address: String,
    },
    /// TLS files are given for a Unix socket.
    #[error("TLSConfig is there for a Unix socket, where engines use no TLS; remove it")]
    TlsOnSocket,
    /// Calls to another machine are in plain text.
    #[error(
        "engines call {address} in plain text, which everyone on the way can read and change; use https with a .json file"
    )]
    Plain {
        /// The address.
        address: String,
    },
    /// A `.spec` file has an `https` address.
    #[error(
        "https in a .spec file is encrypted but verified by nobody: engines talk to whoever answers; use a .json file with CAFile"
    )]
    UnverifiedLine,
    /// `TLSConfig` names no authority.
    #[error(
        "TLSConfig has no CAFile, and engines then verify nobody: they talk to whoever answers; name the server's CA as CAFile"
    )]
    UnverifiedNoCa,
    /// Verification is turned off.
    #[error(
        "InsecureSkipVerify is true: engines talk to whoever answers; set it to false and name the server's CA as CAFile"
    )]
    UnverifiedAsked,
    /// No certificate of this host is named.
    #[error(
        "it names no CertFile and KeyFile, so that engines show no certificate of this host, and volhost, for one, answers nobody without; unpack this host's bundle"
    )]
    NoClientCertificate,
    /// A file has a relative path.
    #[error("{field} is the relative path {}, which each engine looks up where it was started; write the absolute one", path.display())]
    Relative {
        /// The field that names the file.
        field: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Only one of certificate and key is named.
    #[error(
        "only one of CertFile and KeyFile is named, and no engine starts the plugin so; name both or neither"
    )]
    HalfAPair,
    /// A file that the spec file names cannot be read.
    #[error("{field} {} cannot be read ({why}), and no engine uses the plugin without; put it there, or run this as the engine's user", path.display())]
    NoFile {
        /// The field that names the file.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        why: String,
    },
    /// A file holds no usable certificate.
    #[error("{field} {} holds no usable certificate ({why}); put it there in PEM", path.display())]
    NoCertificate {
        /// The field that names the file.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The description of the error.
        why: String,
    },
    /// A file holds no usable private key.
    #[error("KeyFile {} holds no usable private key ({why}); put it there in PEM, without a passphrase", path.display())]
    NoKey {
        /// The path.
        path: PathBuf,
        /// The description of the error.
        why: String,
    },
    /// A certificate has expired.
    #[error("the certificate in {field} {} expired at {at}; replace it (`volhost host renew` makes a host's), and start the engine again", path.display())]
    Expired {
        /// The field that names the file.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The time of expiry, in RFC 3339.
        at: String,
    },
    /// A certificate expires soon.
    #[error("the certificate in {field} {} expires at {at}; replace it before (`volhost host renew` makes a host's), and start the engine again", path.display())]
    ExpiresSoon {
        /// The field that names the file.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The time of expiry, in RFC 3339.
        at: String,
    },
    /// A certificate is not valid yet.
    #[error("the certificate in {field} {} is not valid before {at}; set this machine's clock if it is wrong (`timedatectl`)", path.display())]
    NotYet {
        /// The field that names the file.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The time from which it is valid, in RFC 3339.
        at: String,
    },
    /// The certificate and the key do not match.
    #[error("KeyFile {} is not the key of CertFile {}; put both there from one bundle", key.display(), cert.display())]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// Other users can read the key.
    #[error("KeyFile {} can be read by others than its owner (mode {mode:04o}), who can then pass for this host; `chmod 600` it", path.display())]
    Exposed {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The host's name cannot be resolved.
    #[error("the name {host} was not found ({why}); correct it, or this machine's /etc/hosts or DNS")]
    Unresolved {
        /// The name.
        host: String,
        /// The system's error.
        why: String,
    },
    /// The address cannot be reached.
    #[error(
        "{address} cannot be reached ({why}); start the plugin there, or correct the address, or let the firewall pass it"
    )]
    Unreachable {
        /// The system's error.
        address: String,
        /// The system's error.
        why: String,
    },
    /// A server answers, but `CAFile` does not verify it.
    #[error(
        "the server at {address} is not verified by CAFile: {why}; give it a certificate for that name, or name its CA"
    )]
    NotVerified {
        /// The address.
        address: String,
        /// The verifier's error.
        why: String,
    },
    /// The server is verified, but its certificate is not valid now.
    #[error(
        "the certificate of the server at {address} is not valid at this time ({why}); set this machine's clock if it is wrong (`timedatectl`), else give the server another certificate"
    )]
    OutOfDate {
        /// The address.
        address: String,
        /// The verifier's error.
        why: String,
    },
    /// The server refuses this host's certificate.
    #[error(
        "the server at {address} refused this host ({why}); if its certificate was revoked or is another CA's, `volhost host add` on the storage host makes another"
    )]
    Refused {
        /// The address.
        address: String,
        /// The way in which the server refused.
        why: String,
    },
    /// The connection broke before an answer came.
    #[error(
        "{address} broke the connection off ({why}); look into the plugin's log, and whether that is the plugin at all"
    )]
    Broken {
        /// The address.
        address: String,
        /// The error of the connection.
        why: String,
    },
    /// No answer came in time.
    #[error("{address} did not answer within {seconds} s; look into the plugin's log")]
    Silent {
        /// The address.
        address: String,
        /// The time limit.
        seconds: u64,
    },
    /// The server at the address is not a volume plugin.
    #[error(
        "{address} answered {answer}, which is no volume plugin's answer to Capabilities; correct the address, or look into the plugin's log"
    )]
    NoPlugin {
        /// The address.
        address: String,
        /// The server's answer.
        answer: String,
    },
}

fn hint(meant: Option<&str>) -> String {
    meant.map(|meant| format!(" (did you mean {meant:?}?)")).unwrap_or_default()
}
