//! The value that each command prints with `--json`.

/// The value that one or several commands print.
pub(super) struct Printed {
    /// The commands, with the flags that make a difference.
    pub(super) of: &'static [&'static str],
    pub(super) prints: &'static str,
    /// The meaning of the words in its fields that are not self-explanatory.
    pub(super) meaning: &'static str,
}

/// The commands that print no JSON: they run until a signal ends them, or print a script.
#[cfg(test)]
pub(super) const WITHOUT_JSON: &[&str] = &["serve", "completions"];

/// The values, in the order of the same table in docs/reference/commands.md.
pub(super) const TABLE: &[Printed] = &[
    Printed {
        of: &["volume ls"],
        prints: "a list of {`name`, `backend`, `path`, `created_at`, `options`, `state`, `mounts`}",
        meaning: "`state` is the backend's, or `pending` while the volume is being made",
    },
    Printed {
        of: &["volume create", "volume restore"],
        prints: "an object as `volume ls` lists them",
        meaning: "",
    },
    Printed {
        of: &["volume inspect"],
        prints: "a list of objects as `volume ls` lists them, with `id`, `adopted`, `durable`, `known_to`, `mounted_by` \
                 (as `mount ls`), and `directory` {`kind`, `uid`, `gid`, `mode`, `changed`}",
        meaning: "`durable` is false while a power cut could take the new directory, which would be made again. \
                  `directory` describes what is in the volume's place now; `null` if it cannot be read. \
                  Its `kind` is `directory`, `nothing`, or another kind of file, such as `a symbolic link`. Its \
                  `changed` shows where owner or mode differ from the options (`uid=70 then, uid=999 now`)",
    },
    Printed {
        of: &["volume ls --trash"],
        prints: "a list of {`name`, `id`, `backend`, `removed_at`, `expires_at`, `blocked`}",
        meaning: "",
    },
    Printed { of: &["volume ls -q"], prints: "a list of names, or of IDs with `--trash`", meaning: "" },
    Printed { of: &["volume rm"], prints: "a list of {`name`, `done`}", meaning: "" },
    Printed {
        of: &["mount ls"],
        prints: "a list of {`volume`, `host`, `id`, `count`, `since`, `stale`, `address`}",
        meaning: "",
    },
    Printed {
        of: &["mount release", "host release"],
        prints: "{`released`, `kept`}: lists as of `mount ls`",
        meaning: "",
    },
    Printed {
        of: &["backend ls"],
        prints: "a list of {`name`, `path`, `state`, `draining`, `reason`, `volumes`, `total_bytes`, \
                 `free_bytes`, `names`}",
        meaning: "`names` is how the storage distinguishes names: `exact`, `case-insensitive`, `final dots \
                  dropped`, or the last two with a comma",
    },
    Printed { of: &["backend init", "backend adopt"], prints: "{`done`}", meaning: "" },
    Printed {
        of: &["host ls"],
        prints: "a list of {`name`, `serial`, `expires`, `last_seen`, `mounts`, `revoked`, `cloned`, \
                 `addresses`}",
        meaning: "",
    },
    Printed {
        of: &["host add", "host renew"],
        prints: "{`name`, `serial`, `expires`, `advertise`, `plugin_name`, `file`, `holds_key`}",
        meaning: "",
    },
    Printed { of: &["host revoke"], prints: "{`name`, `certificates`, `mounts`}", meaning: "" },
    Printed { of: &["pki init"], prints: "{`file`, `name`, `expires`}", meaning: "" },
    Printed {
        of: &["pki rollover start", "pki rollover status"],
        prints: "{`state`, `ca`, `next`, `hosts`}",
        meaning: "`state` is `none`, `overlap`, or `finishing` if a finish was cut off. A CA is {`name`, \
                  `expires`}. One of `hosts` is {`name`, `moved`, `renewed`, `uses`, `last_seen`}; `uses` is \
                  `old`, `new` or `null`",
    },
    Printed {
        of: &["pki rollover finish", "pki rollover abort"],
        prints: "{`ca`, `kept_certificate`, `kept_key`, `shut_out`}",
        meaning: "",
    },
    Printed { of: &["pki csr"], prints: "{`request`}, or {`file`} with `-o`", meaning: "" },
    Printed {
        of: &["pki sign"],
        prints: "{`names`, `expires`, `certificate`}; with `-o`, `file` instead of `certificate`",
        meaning: "",
    },
    Printed { of: &["pki install"], prints: "{`which`, `file`, `serial`, `names`, `expires`}", meaning: "" },
    Printed {
        of: &["status"],
        prints: "{`version`, `name`, `node`, `listening`, `catalog`, `catalog_fault`, `volumes`, `mounts`, \
                 `backends`, `connections`, `since`, `last_reload`, `needs_restart`, `spec`, \
                 `server_certificate_expires`, `log_lines_dropped`, `troubles`, `cloned_hosts`}",
        meaning: "`last_reload` is `null` or an object as of `reload`: that of a unit that is still rejected, \
                  even if another unit was applied later. `troubles` holds sentences about a socket or a spec \
                  file that is not as volhost published it, and about files that do not answer",
    },
    Printed {
        of: &["reload"],
        prints: "a list of {`at`, `unit`, `result`, `faults`}",
        meaning: "`unit` is `configuration`, `certificates` or `crl`; `result` is `applied` or `rejected`",
    },
    Printed {
        of: &["check"],
        prints: "a list of {`file`, `line`, `column`, `field`, `what`, `hint`}",
        meaning: "",
    },
    Printed {
        of: &["check --catalog"],
        prints: "{`looked_at`, `not_looked_at`, `findings`, `volumes`, `mounts`, `removed`, `hosts`, `backends`}",
        meaning: "a finding is {`backend`, `kind`, `name`, `what`}. One of the kind `owner` is no fault, and the \
                  exit code ignores it",
    },
    Printed { of: &["catalog export -o"], prints: "{`file`, `records`}", meaning: "" },
    Printed {
        of: &["catalog import"],
        prints: "{`catalog`, `volumes`, `mounts`, `removed`, `hosts`, `backends`}",
        meaning: "",
    },
    Printed {
        of: &["catalog rebuild"],
        prints: "an object as `catalog import` prints it, with `copies`, a list of {`backend`, `path`, `at`, \
                 `reason`}, and `findings` as `check --catalog`",
        meaning: "",
    },
    Printed {
        of: &["spec show"],
        prints: "{`path`, `presence`, `content`}",
        meaning: "`presence` is `missing`, `current`, `outdated` or `stranger`",
    },
    Printed {
        of: &["spec write"],
        prints: "{`path`, `result`}",
        meaning: "`result` is `created`, `updated` or `unchanged`",
    },
    Printed { of: &["spec remove"], prints: "a list of paths", meaning: "" },
    Printed {
        of: &["doctor"],
        prints: "a list of {`check`, `subject`, `verdict`, `message`, `remedy`}",
        meaning: "`verdict` is `ok`, `note`, `warning`, `wrong` or `skipped`",
    },
    Printed { of: &["man --out"], prints: "a list of paths", meaning: "" },
    Printed {
        of: &["spec lint"],
        prints: "{`plugins`, `findings`}: lists of {`name`, `file`, `address`, `tls`, `shadows`, `probe`} and of \
                 {`plugin`, `file`, `severity`, `fault`, `text`}",
        meaning: "`tls` is `verified`, `unverified`, `off` or `local`. `probe` is `answers`, the fault's word, or \
                  `null` if the plugin was not called. `severity` is `error` or `warning`",
    },
];
