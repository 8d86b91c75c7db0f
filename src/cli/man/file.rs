//! The page of a configuration file, generated from the table of its fields.

use std::io;

use clap_mangen::roff::{Roff, bold, roman};

use super::{Page, text};
use crate::config::fields::{self, Applied, Field, REQUIRED, Takes, Text};

/// The texts of a page besides its table.
struct File {
    name: &'static str,
    about: &'static str,
    description: &'static [&'static str],
    fields: &'static [Field],
    example: &'static str,
    path: &'static str,
    see_also: &'static [&'static str],
}

const FILES: [File; 2] = [
    File {
        name: "volhost.json",
        about: "configuration of volhost",
        description: &[
            "JSON without comments. Every field is optional, and so is the file. Unknown and duplicate fields are faults; \
             `volhost check` prints all faults of both files at once.",
            "A service that runs follows the file: a change is in force within a second, or is rejected as a whole with \
             its faults in `volhost status` and in the log. A change of a field that needs a restart waits for that.",
        ],
        fields: fields::CONFIG,
        example: include_str!("../../../etc/volhost.json"),
        path: "/etc/volhost/volhost.json",
        see_also: &["volhost(1)", "volhost-check(1)", "volhost-reload(1)", "backends.json(5)"],
    },
    File {
        name: "backends.json",
        about: "the backends of volhost: directories under which volumes lie",
        description: &[
            "An object of backends by name. A string is short for an object with that `path`. Without the file there is \
             one backend, `default`, in `/var/lib/volhost/volumes`, which volhost makes; it makes no other backend's \
             directory.",
            "A service that runs follows the file: every change is in force within a second, or the file is rejected as a \
             whole. A backend that leaves the map loses nothing.",
        ],
        fields: fields::BACKEND,
        example: include_str!("../../../etc/backends.json"),
        path: "/etc/volhost/backends.json",
        see_also: &["volhost(1)", "volhost-check(1)", "volhost-backend(1)", "volhost.json(5)"],
    },
];

/// Returns the page of each file.
pub(super) fn pages() -> io::Result<Vec<Page>> {
    FILES.iter().map(|file| Ok(Page { name: file.name.into(), section: "5", roff: page(file)? })).collect()
}

fn page(file: &File) -> io::Result<Vec<u8>> {
    let mut roff = Roff::default();
    let source = concat!("volhost ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [file.name, "5", text::NO_DATE, source, "volhost"]);
    roff.control("SH", ["NAME"]).text([roman(format!("{} - {}", file.name, file.about))]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in file.description {
        roff.control("PP", []).text(text::inline(paragraph));
    }
    roff.control("SH", ["FIELDS"]);
    describe(file.fields, "", &mut roff);
    roff.control("SH", ["EXAMPLE"]).control("nf", []);
    for line in file.example.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("SH", ["FILES"]).control("TP", []).text([bold(file.path)]);
    roff.text([roman("The file, unless another one is named by the configuration or on the command line.")]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    text::see_also(file.see_also, &mut page)?;
    Ok(page)
}

/// Writes the fields of an object, each followed by its own fields.
fn describe(fields: &'static [Field], prefix: &str, roff: &mut Roff) {
    for field in fields {
        let name = format!("{prefix}{}", field.name);
        roff.control("TP", []).text([bold(name.as_str())]);
        roff.text(text::inline(&field_text(field)));
        match field.takes {
            Takes::Object(below) => describe(below, &format!("{name}."), roff),
            Takes::Hosts(below) => describe(below, &format!("{name}.NAME."), roff),
            _ => {}
        }
    }
}

/// Returns a field's meaning, its values, its default, and how a change comes into force.
fn field_text(field: &Field) -> String {
    let Field { name: _, takes, null, default, doc, applied } = field;
    let mut said = vec![text::sentence(doc)];
    let taken = values_text(takes);
    if !taken.is_empty() {
        said.push(format!("Takes {taken}{}.", if *null { ", or null" } else { "" }));
    }
    match *default {
        "" => {}
        REQUIRED => said.push("It must be given.".into()),
        default => said.push(format!("Default: {default}.")),
    }
    if *applied != Applied::Untold {
        said.push(format!("A change is in force by a {}.", applied.as_str()));
    }
    said.join(" ")
}

/// Returns the values that a field takes, in words; an empty text if its meaning or its own fields say it.
fn values_text(takes: &Takes) -> String {
    match takes {
        Takes::Flag => "true or false".into(),
        Takes::Number(range) => format!("a whole number from {} to {}", range.start(), range.end()),
        Takes::Word(words) => format!("one of {}", words.join(", ")),
        Takes::Text(kind) => string(*kind).into(),
        Takes::DurationOrZero => "a duration such as 24h or 7days, or 0".into(),
        Takes::List(kind, _) => format!("a list: {} each", string(*kind)),
        Takes::Hosts(_) => "an object of hosts by name".into(),
        Takes::ByHost(kind) => format!("an object by host, {} each", string(*kind)),
        Takes::Object(_) => "an object".into(),
        Takes::Nothing => String::new(),
    }
}

fn string(kind: Text) -> &'static str {
    match kind {
        Text::Any | Text::NotEmpty => "a string",
        Text::PluginName => "a plugin's name",
        Text::HostName => "a host's name",
        Text::HostPattern => "a host's name or a pattern of names",
        Text::Right => "create, mount, remove or adopt",
        Text::Network => "an address or a network",
        Text::BackendName => "a backend's name",
        Text::Listen | Text::WebAddress | Text::Advertise | Text::Catalog => "a string with an address",
        Text::Path | Text::Socket => "an absolute path",
        Text::Directory => "an absolute path without ..",
        Text::Duration => "a duration such as 5s or 10min",
        Text::Mode => "a string of octal digits",
    }
}
