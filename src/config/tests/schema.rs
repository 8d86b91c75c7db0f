//! The JSON Schemas in `etc`, with which editors complete and check both files: made from the table of fields, and
//! compared with what the parser accepts.
//!
//! A schema never refuses what the parser accepts. What it cannot express (a key given twice, overlapping backends, an
//! address that serves others without TLS) is left to `volhost check`.

use jsonschema::Validator;

use super::super::fields::{self, Field, Takes, Text};
use super::*;
use crate::model::right::Right;

const ETC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/etc");

/// One part of a host's name between dots.
const LABEL: &str = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";

fn config_schema() -> Value {
    let mut schema = object(fields::CONFIG);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("volhost.json, the configuration of volhost");
    // A certificate and its key: both or neither.
    let given = |name: &str| json!({"required": [name], "properties": {name: {"type": "string"}}});
    let needs = |one, other| json!({"if": given(one), "then": given(other)});
    schema["properties"]["tls"]["allOf"] = json!([needs("cert", "key"), needs("key", "cert")]);
    // A certificate is shown to members that are called by TLS; a user has a password.
    schema["properties"]["etcd"]["allOf"] = json!([
        needs("cert", "key"),
        needs("key", "cert"),
        needs("cert", "ca"),
        needs("user", "password_file"),
        needs("password_file", "user"),
    ]);
    // Credentials for a cluster are for a catalog in one.
    schema["if"] = json!({"required": ["etcd"], "properties": {"etcd": {"type": "object"}}});
    schema["then"] = json!({"required": ["catalog"], "properties": {"catalog": {"pattern": "^etcd:"}}});
    schema
}

fn map_schema() -> Value {
    let backend = object(fields::BACKEND);
    let mut path = text(Text::Directory);
    path["description"] = json!("short for an object with this path");
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "backends.json, the backend map of volhost",
        "description": "the backends by their names",
        "type": "object",
        "properties": {fields::SCHEMA: {"type": "string"}},
        "patternProperties": {"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$": {"anyOf": [path, backend]}},
        "additionalProperties": false,
    })
}

fn object(table: &'static [Field]) -> Value {
    let properties: serde_json::Map<_, _> =
        table.iter().filter_map(|field| Some((field.name.to_owned(), property(field)?))).collect();
    let required: Vec<_> =
        table.iter().filter(|field| field.default == fields::REQUIRED).map(|field| field.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// Returns the schema of a field; `None` for a field that is always refused, which an editor must not offer.
fn property(field: &Field) -> Option<Value> {
    let Field { name: _, takes, null, default, doc, applied: _ } = field;
    let mut schema = match takes {
        Takes::Flag => json!({"type": "boolean"}),
        Takes::Number(range) => json!({"type": "integer", "minimum": range.start(), "maximum": range.end()}),
        Takes::Word(words) => json!({"type": "string", "enum": words}),
        Takes::Text(kind) => text(*kind),
        Takes::DurationOrZero => {
            json!({"anyOf": [text(Text::Duration), {"enum": [0, "0"]}]})
        }
        Takes::List(kind, least) => json!({"type": "array", "items": text(*kind), "minItems": least}),
        Takes::Object(fields) => object(fields),
        Takes::Hosts(fields) => json!({
            "type": "object",
            "propertyNames": {"pattern": format!(r"^(\*|{LABEL}(\.{LABEL})*)$"), "maxLength": 253},
            "additionalProperties": object(fields),
        }),
        Takes::ByHost(kind) => json!({
            "type": "object",
            "propertyNames": {"pattern": format!(r"^{LABEL}(\.{LABEL})*$"), "maxLength": 253},
            "additionalProperties": text(*kind),
        }),
        Takes::Nothing if *null => json!({"type": "null"}),
        Takes::Nothing => return None,
    };
    if *null && !matches!(takes, Takes::Nothing) {
        schema["type"] = json!([schema["type"], "null"]);
    }
    let mut description = doc.replace('`', "");
    match json_default(field) {
        Some(default) => schema["default"] = default,
        None if ["", fields::REQUIRED].contains(default) => {}
        None => description = format!("{description}. Default: {}", default.replace('`', "")),
    }
    schema["description"] = json!(description);
    Some(schema)
}

/// Returns a default that is given as JSON.
fn json_default(field: &Field) -> Option<Value> {
    let quoted = field.default.strip_prefix('`')?.strip_suffix('`')?;
    serde_json::from_str(quoted).ok()
}

fn text(kind: Text) -> Value {
    let pattern = |pattern: &str| json!({"type": "string", "pattern": pattern});
    match kind {
        Text::Any => json!({"type": "string"}),
        Text::NotEmpty => json!({"type": "string", "minLength": 1}),
        Text::PluginName => pattern("^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$"),
        Text::HostName => json!({
            "type": "string",
            "pattern": format!(r"^{LABEL}(\.{LABEL})*$"),
            "maxLength": 253,
            "not": {"pattern": "^[aA][nN][oO][nN][yY][mM][oO][uU][sS]$"},
        }),
        Text::HostPattern => pattern("^[a-zA-Z0-9.*?-]{1,253}$"),
        Text::Right => json!({"type": "string", "enum": Right::ALL.map(Right::as_str)}),
        Text::Network => pattern(r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"),
        Text::BackendName => pattern("^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$"),
        Text::Listen => {
            pattern(r"^(https?://([0-9.]+|\[[0-9a-fA-F:.]+(%[0-9]+)?\]):[0-9]+$|unix:(///|/([^/]|$)))")
        }
        Text::WebAddress => pattern(r"^https?://([0-9.]+|\[[0-9a-fA-F:.]+(%[0-9]+)?\]):[0-9]+$"),
        Text::Advertise => pattern(
            r"^(https?://([a-zA-Z0-9.-]+|\[[0-9a-fA-F:.]+\]):0*[1-9][0-9]{0,4}$|unix:(///|/([^/]|$)))",
        ),
        Text::Catalog => {
            let member = r"([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\]):\+?0*[1-9][0-9]{0,4}";
            let part = "[a-zA-Z0-9._-]+";
            pattern(&format!("^(sqlite:/([^/]|$)|etcd://{member}(,{member})*/{part}(/{part})*/*$)"))
        }
        Text::Path => pattern("^/"),
        Text::Directory => {
            json!({"type": "string", "pattern": "^/", "not": {"pattern": r"/\.\.(/|$)"}})
        }
        Text::Socket => json!({"type": "string", "pattern": "^/", "maxLength": address::SOCKET_PATH_BYTES}),
        Text::Duration => {
            let units = "nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|\
                         hours|hour|hrs|hr|h|days|day|d|weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y";
            let number = r"[0-9][0-9\s]*(\.\s*[0-9][0-9\s]*)?";
            pattern(&format!(r"^\s*({number}({units})\s*)+$"))
        }
        Text::Mode => pattern("^0?[0-7]{1,4}$"),
    }
}

/// The two schemas, ready to check with.
struct Schemas {
    config: Validator,
    map: Validator,
}

impl Schemas {
    fn new() -> Self {
        let new = |schema: &Value| {
            assert!(jsonschema::draft7::meta::is_valid(schema), "{schema}");
            jsonschema::draft7::new(schema).unwrap()
        };
        Self { config: new(&config_schema()), map: new(&map_schema()) }
    }
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_schemas_in_etc_are_those_of_the_table() {
    for (name, schema) in [("volhost", config_schema()), ("backends", map_schema())] {
        let file = format!("{ETC}/{name}.schema.json");
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let told = "look at it, then UPDATE_GOLDEN=1 cargo test --lib config::";
        assert_eq!(text, fs::read_to_string(&file).unwrap_or_default(), "{file} differs: {told}");
    }
}

#[test]
fn the_samples_keep_to_the_schemas_that_they_name_and_a_spurious_key_in_them_does_not() {
    let schemas = Schemas::new();
    let full = format!("{DATA}/full");
    for (dir, file, name, schema) in [
        (ETC, "volhost", Some("volhost"), &schemas.config),
        (ETC, "volhost-etcd", Some("volhost"), &schemas.config),
        (ETC, "backends", Some("backends"), &schemas.map),
        (&full, "volhost", None, &schemas.config),
        (&full, "backends", None, &schemas.map),
    ] {
        let sample = value(&fs::read_to_string(format!("{dir}/{file}.json")).unwrap());
        if let Some(name) = name {
            assert_eq!(sample[fields::SCHEMA], format!("{name}.schema.json"));
        }
        let errors: Vec<_> = schema.iter_errors(&sample).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{dir}/{file}.json: {errors:?}");
        for spoilt in with_a_spurious_key(&sample) {
            assert!(!schema.is_valid(&spoilt), "{spoilt}");
        }
    }
    // The parser's view of the same: `a_spurious_key_is_refused_in_every_object`, and for the samples of `etc` the
    // tests of the program.
}

#[test]
fn the_defaults_that_are_told_are_those_that_hold() {
    let defaults = |fields: &[Field]| -> serde_json::Map<String, Value> {
        fields.iter().filter_map(|field| Some((field.name.to_owned(), json_default(field)?))).collect()
    };
    let mut config = defaults(fields::CONFIG);
    assert!(config.len() > 7, "{config:?}");
    config.insert("limits".into(), Value::Object(defaults(fields::LIMITS)));
    config.insert("spec".into(), json!({"dir": "/etc/docker/plugins"}));
    // If it were named, it would have to exist.
    assert_eq!(config.remove("backends"), Some(json!("/etc/volhost/backends.json")));
    let mut map = defaults(fields::BACKEND);
    map.insert("path".into(), json!("/nonexistent/volumes"));

    let system = Paths::new(None, true, |_| None).unwrap();
    assert_eq!(system.map(), Path::new("/etc/volhost/backends.json"));
    let read = |config: Value, map: Value| {
        let mut place = Place::with(&config.to_string(), &map.to_string());
        let named = place.around.paths.config();
        // The default paths of the system, but the map of this test.
        place.around.paths = Paths { etc: place.around.paths.etc.clone(), ..system.clone() };
        load::read(&place.around, Some(&named), NamedFiles::MayBeMissing, &[]).map(|mut loaded| {
            (loaded.config.boot.pki, loaded.config.live.map) = (PathBuf::new(), PathBuf::new());
            loaded.config
        })
    };
    let told = read(Value::Object(config), json!({ "a": map })).unwrap();
    assert_eq!(told, read(json!({}), json!({"a": "/nonexistent/volumes"})).unwrap());
}

#[test]
fn what_the_parser_refuses_the_schema_of_the_configuration_refuses() {
    let schema = Schemas::new().config;
    for text in [
        "[]",
        r#"{"$schema": 1}"#,
        r#"{"name": "-volhost"}"#,
        r#"{"node": "store_1"}"#,
        r#"{"node": "Anonymous"}"#,
        r#"{"node": null}"#,
        r#"{"scope": "gobal"}"#,
        r#"{"listen": []}"#,
        r#"{"listen": "https://127.0.0.1:7443"}"#,
        r#"{"listen": ["htps://127.0.0.1:7443"]}"#,
        r#"{"listen": ["https://localhost:7443"]}"#,
        r#"{"listen": ["unix://run/x"]}"#,
        r#"{"listen": [7443]}"#,
        r#"{"insecure": "yes"}"#,
        r#"{"advertise": "store1:7443"}"#,
        r#"{"advertise": "https://store1"}"#,
        r#"{"advertise": "https://store1:0"}"#,
        r#"{"tls": {"cert": "/a"}}"#,
        r#"{"tls": {"key": "/a", "cert": null}}"#,
        r#"{"tls": {"crl": "crl.pem"}}"#,
        r#"{"tls": null}"#,
        r#"{"spec": {"format": "yaml"}}"#,
        r#"{"spec": {"dir": "plugins"}}"#,
        r#"{"catalog": "/var/x.db"}"#,
        r#"{"catalog": "sqlite:x.db"}"#,
        r#"{"catalog": "sqlite:///x.db"}"#,
        r#"{"catalog": "etcd://127.0.0.1:2379"}"#,
        r#"{"backends": "backends.json"}"#,
        r#"{"hosts": {"web*": {}}}"#,
        r#"{"hosts": {"a_b": {}}}"#,
        r#"{"hosts": {"web1": true}}"#,
        r#"{"hosts": {"web1": {"rights": ["mount", "read"]}}}"#,
        r#"{"hosts": {"web1": {"rights": "mount"}}}"#,
        r#"{"hosts": {"web1": {"backends": ["../fast"]}}}"#,
        r#"{"hosts": {"*": {"right": []}}}"#,
        r#"{"admin": "admin.sock"}"#,
        r#"{"metrics": "unix:/a"}"#,
        r#"{"audit": "/a"}"#,
        r#"{"etcd": {}}"#,
        r#"{"etcd": {}, "catalog": "sqlite:/a"}"#,
        r#"{"etcd": "/a", "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"cert": "/a"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"ca": "/a", "cert": "/a"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"ca": "/a", "key": "/a"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"cert": "/a", "key": "/a"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"user": "u"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"user": "", "password_file": "/a"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"password_file": "/a"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"etcd": {"ca": "ca.crt"}, "catalog": "etcd://a:1/p"}"#,
        r#"{"catalog": "etcd://a:1,b:2"}"#,
        r#"{"catalog": "etcd://a:0/p"}"#,
        r#"{"catalog": "etcd://a:1,/p"}"#,
        r#"{"catalog": "etcd://a/p"}"#,
        r#"{"catalog": "etcd://u@a:1/p"}"#,
        r#"{"catalog": "etcd://a:1/p//q"}"#,
        r#"{"catalog": "etcd://a:1//p"}"#,
        r#"{"catalog": "etcd:a:1/p"}"#,
        r#"{"limits": {"connections": 0}}"#,
        r#"{"limits": {"body_bytes": 4095}}"#,
        r#"{"limits": {"body_bytes": "1MiB"}}"#,
        r#"{"limits": {"handshake": 5}}"#,
        r#"{"limits": {"handshake": "5"}}"#,
        r#"{"limits": {"request": "5 parsecs"}}"#,
    ] {
        assert_ne!(config_faults(text), [""; 0], "{text}");
        assert!(!schema.is_valid(&value(text)), "{text}");
    }
}

#[test]
fn what_the_parser_refuses_the_schema_of_the_map_refuses() {
    let schema = Schemas::new().map;
    for text in [
        "[]",
        r#"{"$schema": {}}"#,
        r#"{".slow": "/a"}"#,
        r#"{"a": 5}"#,
        r#"{"a": null}"#,
        r#"{"a": "volumes"}"#,
        r#"{"a": "/srv/../etc"}"#,
        r#"{"a": "/srv/.."}"#,
        r#"{"a": {}}"#,
        r#"{"a": {"path": "/a", "mountpoint": "x"}}"#,
        r#"{"a": {"path": "/a", "mountpoint_by_host": {"web*": "/b"}}}"#,
        r#"{"a": {"path": "/a", "mountpoint_by_host": {"web2": "b"}}}"#,
        r#"{"a": {"path": "/a", "mountpoint_by_host": {"web2": null}}}"#,
        r#"{"a": {"path": "/a", "hosts": ["a_b"]}}"#,
        r#"{"a": {"path": "/a", "hosts": "web1"}}"#,
        r#"{"a": {"path": "/a", "draining": 1}}"#,
        r#"{"a": {"path": "/a", "trash": "24"}}"#,
        r#"{"a": {"path": "/a", "trash": 24}}"#,
        r#"{"a": {"path": "/a", "uid": -1}}"#,
        r#"{"a": {"path": "/a", "uid": 4294967295}}"#,
        r#"{"a": {"path": "/a", "gid": 1.5}}"#,
        r#"{"a": {"path": "/a", "mode": "rwx"}}"#,
        r#"{"a": {"path": "/a", "mode": "17777"}}"#,
        r#"{"a": {"path": "/a", "mode": 755}}"#,
    ] {
        assert_ne!(map_faults(text), [""; 0], "{text}");
        assert!(!schema.is_valid(&value(text)), "{text}");
    }
}

/// Returns every way to put another value in the place of one value, with the path of the field.
fn with_another_value(value: &Value, field: &str) -> Vec<(String, Value)> {
    let mut all: Vec<_> = [
        json!(null),
        json!(true),
        json!(0),
        json!(5000),
        json!(-1),
        json!(1.5),
        json!(""),
        json!("0"),
        json!("24h"),
        json!("1.5 h 2min"),
        json!("0755"),
        json!("web1.example.org"),
        json!("json"),
        json!("global"),
        json!("/a/b"),
        json!("//a/..b/"),
        json!("a/b"),
        json!("unix:///a"),
        json!("http://[::1]:80"),
        json!("https://store1:7443"),
        json!("sqlite:/a"),
        json!("etcd://a:1,[::1]:02/p/q/"),
        json!("etcd://a:1/p q"),
        json!([]),
        json!(["web*"]),
        json!(["https://127.0.0.1:1"]),
        json!({}),
        json!({"web1": {}}),
        json!({"path": "/a"}),
    ]
    .into_iter()
    .map(|other| (field.to_owned(), other))
    .collect();
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                for (field, changed) in with_another_value(member, &format!("{field}.{key}")) {
                    let mut with = members.clone();
                    with.insert(key.clone(), changed);
                    all.push((field, Value::Object(with)));
                }
                let mut without = members.clone();
                without.remove(key);
                all.push((format!("{field}.{key}"), Value::Object(without)));
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                for (field, changed) in with_another_value(element, &format!("{field}[]")) {
                    let mut with = elements.clone();
                    with[index] = changed;
                    all.push((field, Value::Array(with)));
                }
            }
        }
        _ => {}
    }
    all
}

#[test]
fn whatever_is_put_in_a_place_parser_and_schema_agree_on_it() {
    let schemas = Schemas::new();
    let (mut accepted, mut beyond) = (0, Vec::new());
    for (file, schema) in [("volhost", &schemas.config), ("backends", &schemas.map)] {
        for (field, changed) in with_another_value(&value(&sample(&format!("full/{file}.json"))), file) {
            let text = changed.to_string();
            let faults = if file == "volhost" { config_faults(&text) } else { map_faults(&text) };
            match (faults.is_empty(), schema.is_valid(&changed)) {
                (true, true) => accepted += 1,
                (false, false) => {}
                (true, false) => panic!("the schema refuses what the parser takes: {field}: {text}"),
                (false, true) => beyond.push((field, faults.join("; "))),
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
    // What no schema can check: one field against another, and how long a duration is.
    for (field, fault) in beyond {
        let known = [
            "serves other machines without TLS",
            "is given twice",
            "is out of range: it takes from 1s to 10min",
        ];
        assert!(known.iter().any(|known| fault.contains(known)), "the schema takes {field}: {fault}");
    }
}

proptest! {
    #[test]
    fn every_valid_configuration_keeps_to_the_schemas(config in config()) {
        let schemas = Schemas::new();
        let (file, map) = {
            let mut config = config;
            config.live.map = "/a".into();
            render(&config)
        };
        prop_assert!(schemas.config.is_valid(&file), "{}", file);
        prop_assert!(schemas.map.is_valid(&map), "{}", map);
    }
}
