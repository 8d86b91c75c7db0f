//! What can be wrong with what an engine reads, in words: what it is, what an engine makes of it, what mends it.

use std::path::PathBuf;

/// A fault of one file. Its words do not repeat the file that it is in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The directory cannot be listed.
    #[error(
        "it cannot be read as a directory ({why}), so that nothing in it is known here; name one that exists"
    )]
    NoDirectory {
        /// What the system said.
        why: String,
    },
    /// A file that is never looked at, because of one that is.
    #[error("no engine reads it: {} is found first; remove the one that is not meant", by.display())]
    Shadowed {
        /// The file that is read.
        by: PathBuf,
    },
    /// A symlink to nothing, which an engine passes over.
    #[error("it leads nowhere, and engines pass it over; put back what it points to, or remove it")]
    Dangling,
    /// A socket's name on something else.
    #[error("it is no socket, and engines pass it over; remove it")]
    NotASocket,
    /// A socket where only spec files are looked for.
    #[error(
        "engines look for sockets in /run/docker/plugins only; name it in a .spec file here, as unix://PATH"
    )]
    SocketElsewhere,
    /// The spec file cannot be read.
    #[error(
        "it cannot be read ({why}), and no other file is taken in its place; mend or remove it, or run this as the engine's user"
    )]
    Unreadable {
        /// What the system said.
        why: String,
    },
    /// The spec file is no JSON, or not of its shape.
    #[error("an engine cannot read it as JSON: {why}; `volhost spec show` prints one that is right")]
    BadJson {
        /// What is wrong.
        why: String,
    },
    /// Something stands behind the JSON.
    #[error("something stands behind its first JSON object, which engines pass over; remove it")]
    Trailing,
    /// A field that engines do not know.
    #[error("no engine knows the field {field}{}; remove or correct it", hint(meant.as_deref()))]
    UnknownField {
        /// The field.
        field: String,
        /// What was probably meant.
        meant: Option<String>,
    },
    /// Another name inside than outside.
    #[error(
        "it says Name {inside:?}, but the file's name is what engines go by: the plugin is {outside:?}; let both be the same"
    )]
    OtherName {
        /// What the file says.
        inside: String,
        /// What its name says.
        outside: String,
    },
    /// No address, or none that can be called.
    #[error(
        "an engine cannot use the address {address:?}: {why}; it takes https://HOST:PORT, tcp://HOST:PORT or unix:///PATH"
    )]
    BadAddress {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A scheme that an engine does not know and does not refuse.
    #[error(
        "the scheme {scheme}:// is none of https, tcp, http and unix, and an engine takes it for plain TCP; write what is meant"
    )]
    WrongScheme {
        /// The scheme.
        scheme: String,
    },
    /// An address without a port.
    #[error("the address {address:?} has no port, so that engines call port {port}; write the port")]
    NoPort {
        /// The address.
        address: String,
        /// What is called.
        port: u16,
    },
    /// A path, a query or the like, which an engine drops.
    #[error("engines drop all of {address:?} but scheme, host and port; remove the rest")]
    Ignored {
        /// The address.
        address: String,
    },
    /// TLS files for a connection without TLS.
    #[error(
        "TLSConfig is there, but TLS is off: only the scheme https turns it on, and engines call {address} in plain text; write https://"
    )]
    TlsOff {
        /// The address.
        address: String,
    },
    /// TLS files for a Unix socket.
    #[error("TLSConfig is there for a Unix socket, where engines use no TLS; remove it")]
    TlsOnSocket,
    /// Plain text to another machine.
    #[error(
        "engines call {address} in plain text, which everyone on the way can read and change; use https with a .json file"
    )]
    Plain {
        /// The address.
        address: String,
    },
    /// `https` in a line.
    #[error(
        "https in a .spec file is encrypted but verified by nobody: engines talk to whoever answers; use a .json file with CAFile"
    )]
    UnverifiedLine,
    /// TLS without an authority.
    #[error(
        "TLSConfig has no CAFile, and engines then verify nobody: they talk to whoever answers; name the server's CA as CAFile"
    )]
    UnverifiedNoCa,
    /// Verification is turned off.
    #[error(
        "InsecureSkipVerify is true: engines talk to whoever answers; set it to false and name the server's CA as CAFile"
    )]
    UnverifiedAsked,
    /// No certificate of the host's own.
    #[error(
        "it names no CertFile and KeyFile, so that engines show no certificate of this host, and volhost, for one, answers nobody without; unpack this host's bundle"
    )]
    NoClientCertificate,
    /// A file by a relative path.
    #[error("{field} is the relative path {}, which each engine looks up where it was started; write the absolute one", path.display())]
    Relative {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// One of a certificate and its key.
    #[error(
        "only one of CertFile and KeyFile is named, and no engine starts the plugin so; name both or neither"
    )]
    HalfAPair,
    /// A file that a spec file names.
    #[error("{field} {} cannot be read ({why}), and no engine uses the plugin without; put it there, or run this as the engine's user", path.display())]
    NoFile {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A file that should hold a certificate.
    #[error("{field} {} holds no usable certificate ({why}); put it there in PEM", path.display())]
    NoCertificate {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that should hold a key.
    #[error("KeyFile {} holds no usable private key ({why}); put it there in PEM, without a passphrase", path.display())]
    NoKey {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate whose time is over.
    #[error("the certificate in {field} {} expired at {at}; replace it (`volhost host renew` makes a host's), and start the engine again", path.display())]
    Expired {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// When, in RFC 3339.
        at: String,
    },
    /// A certificate whose time is nearly over.
    #[error("the certificate in {field} {} expires at {at}; replace it before (`volhost host renew` makes a host's), and start the engine again", path.display())]
    ExpiresSoon {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// When, in RFC 3339.
        at: String,
    },
    /// A certificate whose time has not begun.
    #[error("the certificate in {field} {} is not valid before {at}; set this machine's clock if it is wrong (`timedatectl`)", path.display())]
    NotYet {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// When, in RFC 3339.
        at: String,
    },
    /// A certificate and a key that do not belong together.
    #[error("KeyFile {} is not the key of CertFile {}; put both there from one bundle", key.display(), cert.display())]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A key that others can read.
    #[error("KeyFile {} can be read by others than its owner (mode {mode:04o}), who can then pass for this host; `chmod 600` it", path.display())]
    Exposed {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The host's name leads nowhere.
    #[error("the name {host} was not found ({why}); correct it, or this machine's /etc/hosts or DNS")]
    Unresolved {
        /// The name.
        host: String,
        /// What the system said.
        why: String,
    },
    /// Nobody answers there.
    #[error(
        "{address} cannot be reached ({why}); start the plugin there, or correct the address, or let the firewall pass it"
    )]
    Unreachable {
        /// The address.
        address: String,
        /// What the system said.
        why: String,
    },
    /// Somebody answers, but not who is meant.
    #[error(
        "the server at {address} is not verified by CAFile: {why}; give it a certificate for that name, or name its CA"
    )]
    NotVerified {
        /// The address.
        address: String,
        /// What the verifier said.
        why: String,
    },
    /// The server is who is meant, but not at this time.
    #[error(
        "the certificate of the server at {address} is not valid at this time ({why}); set this machine's clock if it is wrong (`timedatectl`), else give the server another certificate"
    )]
    OutOfDate {
        /// The address.
        address: String,
        /// What the verifier said.
        why: String,
    },
    /// The server does not take this host's certificate.
    #[error(
        "the server at {address} refused this host ({why}); if its certificate was revoked or is another CA's, `volhost host add` on the storage host makes another"
    )]
    Refused {
        /// The address.
        address: String,
        /// How it did so.
        why: String,
    },
    /// The connection broke before an answer came.
    #[error(
        "{address} broke the connection off ({why}); look into the plugin's log, and whether that is the plugin at all"
    )]
    Broken {
        /// The address.
        address: String,
        /// What was told.
        why: String,
    },
    /// Nothing came in time.
    #[error("{address} did not answer within {seconds} s; look into the plugin's log")]
    Silent {
        /// The address.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Something else answers there.
    #[error(
        "{address} answered {answer}, which is no volume plugin's answer to Capabilities; correct the address, or look into the plugin's log"
    )]
    NoPlugin {
        /// The address.
        address: String,
        /// What it was.
        answer: String,
    },
}

fn hint(meant: Option<&str>) -> String {
    meant.map(|meant| format!(" (did you mean {meant:?}?)")).unwrap_or_default()
}
