//! Secrets in arguments, taken out before anything is stored.
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// What stands in the place of a secret.
const MASK: &str = "[redacted]";
/// What a pattern may remember of what it has seen.
const DFA_BYTES: usize = 128 << 10;
/// Words in the name of a setting whose value is a secret.
const NAMES: &str = r"passw(?:or)?d|passwd|passphrase|\bpass\b|_pass\b|pwd|secret|token|api[-_.]?key|access[-_.]?key|account[-_.]?key|private[-_.]?key|auth[-_.]?key|credentials?";
/// Programs that take a secret behind a short option, and that option; others mean something else by it.
const PROGRAMS: [(&str, &str); 14] = [
    ("mysql", "-p"),
    ("mysqldump", "-p"),
    ("mysqladmin", "-p"),
    ("mariadb", "-p"),
    ("mariadb-dump", "-p"),
    ("sshpass", "-p"),
    ("docker", "-p"),
    ("podman", "-p"),
    ("redis-cli", "-a"),
    ("ldapsearch", "-w"),
    ("ldapmodify", "-w"),
    ("curl", "-u"),
    ("curl", "--user"),
    ("wget", "--user"),
];

/// Whether, and how, secrets are taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Redaction {
    /// Values of settings that are called password, token and the like, bearer tokens, keys of clouds, user information in
    /// URLs.
    #[default]
    On,
    /// Arguments go out as they are.
    Off,
}

/// Takes secrets out of arguments.
#[derive(Clone, Debug)]
pub(super) struct Redact {
    /// None if everything stays.
    rules: Option<Rules>,
}

#[derive(Clone, Debug)]
struct Rules {
    /// Something of each kind, to leave most arguments after one look.
    any: Regex,
    /// A part of an argument and what comes in its place.
    parts: Vec<(Regex, String)>,
    /// An argument whose successor is a secret: `--password`.
    before: Regex,
    /// One that is a secret to its end: `--password=`.
    whole: Regex,
}

impl Redact {
    /// By the configuration.
    pub(super) fn new(redaction: &Redaction) -> Self {
        let on = *redaction == Redaction::On;
        // The patterns are constants; the test below compiles them.
        Self { rules: on.then(rules).flatten() }
    }

    /// The arguments without secrets, and whether there were any.
    pub(super) fn args(&self, args: &[String]) -> (Vec<String>, bool) {
        let Some(rules) = &self.rules else { return (args.to_vec(), false) };
        let mut found = false;
        let mut next_is_secret = false;
        let program = args.first().map_or("", |name| name.rsplit('/').next().unwrap_or(name));
        let options: Vec<&str> =
            PROGRAMS.iter().filter(|(name, _)| *name == program).map(|(_, option)| *option).collect();
        let clean = args.iter().map(|arg| {
            let is_secret = std::mem::replace(&mut next_is_secret, rules.before.is_match(arg));
            if is_secret && !(arg.starts_with('-') && rules.before.is_match(arg)) {
                found = true;
                return MASK.to_owned();
            }
            if let Some(option) = options.iter().find(|option| arg.starts_with(**option)) {
                if arg == option {
                    next_is_secret = true;
                    return arg.clone();
                }
                // `-psecret`, but not another long option.
                if !option.starts_with("--") {
                    found = true;
                    return format!("{option}{MASK}");
                }
            }
            if let Some(name) = rules.whole.find(arg) {
                found = true;
                return format!("{}{MASK}", name.as_str());
            }
            if !rules.any.is_match(arg) {
                return arg.clone();
            }
            let mut text = arg.clone();
            for (part, with) in &rules.parts {
                let replaced = part.replace_all(&text, with.as_str());
                if replaced != text.as_str() {
                    found = true;
                    text = replaced.into_owned();
                }
            }
            text
        });
        let clean = clean.collect();
        (clean, found)
    }
}

/// A pattern that remembers little: each would take up to 2 MiB for speed, and there are a dozen.
fn regex(pattern: &str) -> Option<Regex> {
    // Classes of ASCII: those of Unicode would take a megabyte for each pattern.
    let pattern = pattern.replace(r"\w", "A-Za-z0-9_").replace(r"\d", "0-9").replace(r"\b", r"(?-u:\b)");
    RegexBuilder::new(&pattern).dfa_size_limit(DFA_BYTES).build().ok()
}

fn rules() -> Option<Rules> {
    let value = r#"(?:"[^"]*"|'[^']*'|[^\s"'&;,]+)"#;
    let parts = [
        // In front of the name nothing but what belongs to it: `--db-password=x`, `PGPASSWORD=x`, `"token": "x"`.
        (format!(r#"(?i)([\w.-]*(?:{NAMES})[\w.-]*["']?\s*[=:]\s*){value}"#), format!("${{1}}{MASK}")),
        (r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}".to_owned(), format!("${{1}} {MASK}")),
        // The same by a space, inside of one argument: `sh -c 'psql --password x'`.
        (format!(r"(?i)(\s--?[\w.-]*(?:{NAMES})\s+){value}"), format!("${{1}}{MASK}")),
        (r"(?i)(\s(?:-u|--user)[\s=]*[^\s:]+:)\S+".to_owned(), format!("${{1}}{MASK}")),
        (r"(?i)(\b(?:authorization|cookie):\s*(?:token\s+)?)\S{6,}$".to_owned(), format!("${{1}}{MASK}")),
        (r"\b(pass:)\S+".to_owned(), format!("${{1}}{MASK}")),
        (r"\b(AKIA|ASIA)[A-Z0-9]{12,}".to_owned(), MASK.to_owned()),
        (
            r"\b(gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|sk_live_|npm_|hvs\.|AIza)[\w-]{10,}".to_owned(),
            MASK.to_owned(),
        ),
        (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*".to_owned(), MASK.to_owned()),
        (r"\beyJ[\w-]{6,}\.[\w-]+(\.[\w-]*)?".to_owned(), MASK.to_owned()),
        // A password may have an '@' or a '/' in it; what begins with digits and a '/' is a port.
        (r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@:]*:[\d]*[^\d\s/@]\S*@".to_owned(), format!("${{1}}{MASK}@")),
        (r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@]+@".to_owned(), format!("${{1}}{MASK}@")),
    ];
    let all = parts.iter().map(|(part, _)| format!("(?:{part})")).collect::<Vec<_>>().join("|");
    let parts: Vec<_> = parts.into_iter().filter_map(|(part, with)| Some((regex(&part)?, with))).collect();
    Some(Rules {
        any: regex(&all)?,
        parts,
        whole: regex(&format!(r"(?i)^(?:--?)?[\w.-]*(?:{NAMES})[\w.-]*="))?,
        before: regex(&format!(r"(?i)^--?[\w.-]*(?:{NAMES})$|^(?i:bearer)$|:\s*(?i:bearer)\s*$"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_and_nothing_else_is() {
        let redact = Redact::new(&Redaction::On);
        for (args, want) in [
            (
                &["mysql", "--password=hunter2", "-u", "root"][..],
                &["mysql", "--password=[redacted]", "-u", "root"][..],
            ),
            (&["psql", "--db-password", "hunter2", "db"], &["psql", "--db-password", "[redacted]", "db"]),
            (&["env", "PGPASSWORD=hunter2", "A=b"], &["env", "PGPASSWORD=[redacted]", "A=b"]),
            (
                &["curl", "-H", "Authorization: Bearer abcdef.123456"],
                &["curl", "-H", "Authorization: Bearer [redacted]"],
            ),
            (
                &["curl", "-H", "Authorization: Basic dXNlcjpwYXNz"],
                &["curl", "-H", "Authorization: Basic [redacted]"],
            ),
            (&["git", "clone", "https://bob:hunter2@host/x"], &["git", "clone", "https://[redacted]@host/x"]),
            (&["curl", "https://host/x?token=abc&page=2"], &["curl", "https://host/x?token=[redacted]&page=2"]),
            (&["aws", "AKIAIOSFODNN7EXAMPLE"], &["aws", "[redacted]"]),
            (&["x", r#"{"token": "abc def", "n": 1}"#], &["x", r#"{"token": [redacted], "n": 1}"#]),
            (&["x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"], &["x", "[redacted]"]),
            (&["sh", "-c", "export API_KEY=abc; run"], &["sh", "-c", "export API_KEY=[redacted]; run"]),
            (&["sh", "-c", "psql --password hunter2 db"], &["sh", "-c", "psql --password [redacted] db"]),
            (&["x", "--password=correct horse, hunter2"], &["x", "--password=[redacted]"]),
            (&["/usr/bin/mysql", "-phunter2", "-h", "db"], &["/usr/bin/mysql", "-p[redacted]", "-h", "db"]),
            (&["redis-cli", "-a", "hunter2"], &["redis-cli", "-a", "[redacted]"]),
            (&["curl", "-u", "bob:hunter2", "https://host"], &["curl", "-u", "[redacted]", "https://host"]),
            (&["sh", "-c", "curl -u bob:hunter2 x"], &["sh", "-c", "curl -u bob:[redacted] x"]),
            (&["env", "DB_PASS=hunter2"], &["env", "DB_PASS=[redacted]"]),
            (&["x", "--pass", "hunter2"], &["x", "--pass", "[redacted]"]),
            (&["openssl", "-passin", "pass:hunter2"], &["openssl", "-passin", "pass:[redacted]"]),
            (&["x", "postgres://u:p/hunter2@h/d"], &["x", "postgres://[redacted]@h/d"]),
            (&["x", "postgres://u:p@hunter2@h/d"], &["x", "postgres://[redacted]@h/d"]),
            (&["curl", "-H", "Authorization: token hunter2"], &["curl", "-H", "Authorization: token [redacted]"]),
            (&["x", "sk_live_0123456789abc"], &["x", "[redacted]"]),
            (&["--token", "--password", "hunter2"], &["--token", "--password", "[redacted]"]),
        ] {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            assert_eq!(redact.args(&args), (want.iter().map(|arg| (*arg).to_owned()).collect(), true));
            assert_eq!(Redact::new(&Redaction::Off).args(&args), (args, false));
        }
        for args in [
            &["cat", "/etc/shadow"][..],
            &["passwd", "bob"],
            &["ls", "/run/secrets/kubernetes.io/serviceaccount/token"],
            &["curl", "https://host/path@2x.png"],
            &["ssh", "bob@host"],
            &["ssh", "-p", "22", "host"],
            &["mkdir", "-p", "/a"],
            &["ls", "https://host:8080/a@b"],
            &["compass", "bypass", "--passive"],
            &["tokenize", "basic", "x"],
        ] {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            assert_eq!(redact.args(&args), (args, false));
        }
    }
}
