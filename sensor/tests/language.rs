//! The policy language as its authors meet it: every error in its exact words, and hostile input.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "common/policies.rs"]
mod policies;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use policies::{HEAD, directory_of, names, open, said};

/// Loads one file and returns what is said of it, without the directory's name.
fn said_of(text: &[u8]) -> Vec<String> {
    let dir = directory_of(&[("f.yaml", text)]);
    said(&open(dir.path()).poll().unwrap().unwrap(), dir.path())
}

/// What is wrong with `spec`, and the one thing that is said of it.
fn check(cases: &[(&str, &str)]) {
    let got = |spec: &str| said_of(format!("{HEAD}spec: {spec}\n").as_bytes());
    let wrong = cases.iter().filter(|(spec, message)| got(spec) != [*message]);
    let wrong: Vec<String> =
        wrong.map(|(spec, message)| format!("{spec}\n  {:?}\n  {message:?}", got(spec))).collect();
    assert!(wrong.is_empty(), "got and wanted:\n{}", wrong.join("\n"));
}

#[test]
fn the_form_of_a_policy_is_told_with_what_to_write_instead() {
    check(&[
        ("{pahts: [/a]}", "f.yaml:4:8: unknown field 'pahts'; did you mean 'paths'?"),
        ("{paths: [/a], Severity: high}", "f.yaml:4:21: unknown field 'Severity'; did you mean 'severity'?"),
        (
            "{paths: [/a], severity: hihg}",
            "f.yaml:4:31: 'hihg' is none of the words allowed here; did you mean 'high'?",
        ),
        (
            "{paths: [/a], severity: 7}",
            "f.yaml:4:31: '7' is none of the words allowed here; known words are informational, low, medium, high, critical",
        ),
        ("{paths: /a}", "f.yaml:4:15: 'paths' is the text '/a'; write a list"),
        (
            "{paths: [[/a]]}",
            "f.yaml:4:16: 'paths[0]' is a list; write a text, in quotes if it has special characters",
        ),
        ("{description: x}", "f.yaml:4:7: the field 'paths' is missing; add it"),
        ("[]", "f.yaml:4:7: 'spec' is a list; write a group of fields"),
        (
            "{paths: [/a], operations: [reed]}",
            "f.yaml:4:34: 'reed' is none of the words allowed here; did you mean 'read'?",
        ),
        (
            "{paths: [/a], exceptions: [{comm: [cat]}]}",
            "f.yaml:4:35: unknown field 'comm'; known fields are executables, scripts, ancestors, users, images, paths, sha256, acknowledgeBroad",
        ),
        (
            "{paths: [/a], exceptions: [{executable: [/usr/bin/x]}]}",
            "f.yaml:4:35: unknown field 'executable'; did you mean 'executables'?",
        ),
        (
            "{paths: [/a], dedup: {window: soon}}",
            "f.yaml:4:37: this is no duration; write it as in 60s, 5m or 1h30m",
        ),
    ]);
}

#[test]
fn what_no_author_can_have_meant_is_told() {
    check(&[
        ("{paths: []}", "f.yaml:4:8: spec.paths is empty; name at least one file to watch"),
        (
            "{paths: [/a], operations: []}",
            "f.yaml:4:21: spec.operations is empty; leave it out for read, write, create, truncate, rename, link and delete",
        ),
        ("{paths: [/a], results: []}", "f.yaml:4:21: spec.results is empty; leave it out for success and denied"),
        ("{paths: ['/a[']}", "f.yaml:4:16: '/a[' opens a [ that it never closes; write '\\[' for a plain one"),
        (
            "{paths: [/a/b], exclude: ['/a/**']}",
            "f.yaml:4:16: '/a/b' can never match: exclude '/a/**' takes all of it out; leave one of them out",
        ),
        (
            "{paths: ['/[/]']}",
            "f.yaml:4:16: '/[/]' has a [ ] that no byte of a name is in, and can never match; a component holds no '/'; write it outside of [ ]",
        ),
        (
            "{paths: [/a], exceptions: [{}]}",
            "f.yaml:4:34: an exception without criteria swallows everything that the policy watches; name the executables that may; to watch less, use exclude",
        ),
        (
            "{paths: [/a/b, /a/c], exceptions: [{paths: ['/a/*']}]}",
            "f.yaml:4:42: this exception swallows everything that the policy watches; name the executables that may; to watch less, use exclude",
        ),
        (
            "{paths: [/a], exceptions: [{users: [0]}]}",
            "f.yaml:4:34: an exception by user alone lets every program of that user through; name the executables that may; to watch less, use exclude",
        ),
        (
            "{paths: [/a], exceptions: [{executables: [/usr/bin/python3.11]}]}",
            "f.yaml:4:49: '/usr/bin/python3.11' does what it is told, so this exception lets through whoever can run it; add a second criterion such as paths, users, scripts or images, or acknowledgeBroad: true",
        ),
        (
            "{paths: [/a], exceptions: [{ancestors: [/usr/sbin/sshd]}]}",
            "f.yaml:4:47: '/usr/sbin/sshd' does what it is told, so this exception lets through whoever can run it; add a second criterion such as paths, users, scripts or images, or acknowledgeBroad: true",
        ),
        (
            "{paths: [/a], exceptions: [{executables: ['**/sshd']}]}",
            "f.yaml:4:49: '**/sshd' names a program in any directory; write its full path",
        ),
        (
            "{paths: [/a], exceptions: [{executables: [/x], sha256: [abc]}]}",
            "f.yaml:4:63: 'abc' is no SHA-256 sum; write its 64 hexadecimal digits",
        ),
        (
            "{paths: [/a], exceptions: [{images: ['**']}]}",
            "f.yaml:4:34: an exception without criteria swallows everything that the policy watches; name the executables that may; to watch less, use exclude",
        ),
        (
            "{paths: [/a], exceptions: [{images: ['docker.io/library/nginx:1']}]}",
            "f.yaml:4:44: 'docker.io/library/nginx:1' has a tag or digest and can never match; write the image without",
        ),
        (
            "{paths: [/a], containerSelector: {images: [nginx]}}",
            "f.yaml:4:50: 'nginx' has no registry and can never match; write it in full, as in 'docker.io/library/nginx'",
        ),
        (
            "{paths: [/proc/self/environ]}",
            "f.yaml:4:16: '/proc/self/environ' can never match: to the kernel it is the directory of some process; write '/proc/*/…'",
        ),
        (
            "{paths: [/a], exceptions: [{executables: ['/usr/bin/python3*'], ancestors: [/usr/bin/bash]}]}",
            "f.yaml:4:49: '/usr/bin/python3*' is also 'python3', which does what it is told, so this exception lets through whoever can run it; add a second criterion such as paths, users, scripts or images, or acknowledgeBroad: true",
        ),
        (
            "{paths: [/a], exceptions: [{executables: [sshd]}]}",
            "f.yaml:4:49: 'sshd' begins with neither / nor **/; write its full path",
        ),
        (
            "{paths: ['/**']}",
            "f.yaml:4:16: warning: nothing in '/**' narrows the search, so every open on the node comes to user space; begin with a directory, or end with a file name or extension",
        ),
        (
            "{paths: [/a], threat: [{tactic: T1003, technique: T1003}]}",
            "f.yaml:4:39: 'T1003' is no tactic of MITRE ATT&CK; write it as in TA0006",
        ),
        (
            "{paths: [/a], podSelector: {matchExpressions: [{key: a, operator: In}]}}",
            "f.yaml:4:54: In without values; list at least one",
        ),
        (
            "{paths: [/a], dedup: {window: 48h}}",
            "f.yaml:4:37: the window is below 0s or above 24h; write it as in 60s",
        ),
        (
            "{paths: [/a], rateLimit: {perSecond: 0, burst: 5}}",
            "f.yaml:4:21: perSecond is 0, or burst is less than perSecond; write {perSecond: 5, burst: 100} or more",
        ),
        ("{paths: [/a], containerSelector: {names: ['']}}", "f.yaml:4:49: a name is empty; write it as in 'api*'"),
    ]);
}

#[test]
fn an_example_that_does_not_behave_is_told_with_the_reason() {
    check(&[
        (
            "{paths: [/a], examples: {fires: [{open: /b}]}}",
            "f.yaml:4:40: this example does not fire: no pattern matches; mend the policy, or move the example to silent",
        ),
        (
            "{paths: [/a], examples: {silent: [{open: /a, by: /usr/bin/cat}]}}",
            "f.yaml:4:41: this example fires: its path matches '/a'; mend the policy, or move the example to fires",
        ),
        (
            "{paths: [/a], exceptions: [{executables: [/x]}], examples: {fires: [{open: /a, by: /x}]}}",
            "f.yaml:4:75: this example does not fire: exception 1 covers it; mend the policy, or move the example to silent",
        ),
        (
            "{paths: ['/a/*'], exclude: [/a/b], examples: {fires: [{open: /a/b}]}}",
            "f.yaml:4:61: this example does not fire: exclude '/a/b' matches its path; mend the policy, or move the example to silent",
        ),
        (
            "{paths: [/a], operations: [write], examples: {fires: [{open: /a}]}}",
            "f.yaml:4:61: this example does not fire: its path matches '/a', but this is another operation (spec.operations); mend the policy, or move the example to silent",
        ),
        (
            "{paths: [/a], examples: {fires: [{open: /a, delete: /a}]}}",
            "f.yaml:4:40: an example is about one access; give one of open, rename, link and delete",
        ),
        (
            "{paths: [/a], examples: {fires: [{rename: /a}]}}",
            "f.yaml:4:40: a rename or link without its new name; 'to' is the new name of a rename or link",
        ),
        (
            "{paths: [/a], examples: {fires: [{open: a}]}}",
            "f.yaml:4:40: 'a' does not begin with /; write the full path",
        ),
    ]);
}

#[test]
fn a_namespace_has_its_limits() {
    let tenant = |metadata: &str, spec: &str| {
        said_of(
            format!("apiVersion: pathwatch.dev/v1alpha1\nkind: PathPolicy\nmetadata: {metadata}\nspec: {spec}\n")
                .as_bytes(),
        )
    };
    let own = "{name: p, namespace: shop}";
    for (metadata, spec, message) in [
        (own, "{paths: [/a]}", None),
        (
            "{name: p}",
            "{paths: [/a]}",
            Some(
                "f.yaml:3:1: a PathPolicy belongs to a namespace; add metadata.namespace, or make it a ClusterPathPolicy",
            ),
        ),
        (
            own,
            "{paths: [/a], subjects: all}",
            Some(
                "f.yaml:4:25: 'subjects' in a PathPolicy, which sees the pods of its own namespace only; leave it out, or make it a ClusterPathPolicy",
            ),
        ),
        (
            own,
            "{paths: [/a], severity: critical}",
            Some("f.yaml:4:25: a PathPolicy may be 'high' at most; 'critical' is for ClusterPathPolicies"),
        ),
        (
            own,
            "{paths: ['/**']}",
            Some(
                "f.yaml:4:10: a PathPolicy's pattern needs a directory it begins with, or a file name or extension; write '/dir/**', '**/name' or '**/*.ext'",
            ),
        ),
        (
            "{name: Shop_1, namespace: shop}",
            "{paths: [/a]}",
            Some(
                "f.yaml:3:18: 'Shop_1' cannot name an object; use small letters, digits, '-' and '.', at most 253",
            ),
        ),
    ] {
        let got = tenant(metadata, spec);
        // Columns are those of this test's own shorter head.
        let text = |message: &str| message.split_once(": ").map(|(_, text)| text.to_owned()).unwrap();
        assert_eq!(
            got.iter().map(|m| text(m)).collect::<Vec<_>>(),
            message.map(text).into_iter().collect::<Vec<_>>(),
            "{spec}"
        );
    }
    let many = format!("{{paths: [{}]}}", (0..257).map(|n| format!("/a/{n}")).collect::<Vec<_>>().join(","));
    assert_eq!(tenant(own, &many), ["f.yaml:4:8: 257 patterns; a PathPolicy may have 256; split the policy"]);
    let documents: String = (0..66)
        .map(|n| format!("---\napiVersion: pathwatch.dev/v1alpha1\nkind: PathPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec: {{paths: [/a]}}\n"))
        .collect();
    let got = said_of(documents.as_bytes());
    assert_eq!(got.len(), 2);
    assert!(got.iter().all(|message| message.contains("the namespace has 64 PathPolicies already")), "{got:?}");
}

#[test]
fn one_bad_document_does_not_hide_the_others_faults_nor_the_good_ones() {
    let good = |name: &str| {
        format!("---\n{}spec: {{paths: [/{name}]}}\n", HEAD.replace("name: p", &format!("name: {name}")))
    };
    let text = format!("{}{}{}{}", good("a"), good("b").replace("paths", "pths"), good("c"), good("a"));
    let dir = directory_of(&[
        ("f.yaml", text.as_bytes()),
        ("sub/g.yml", good("c").as_bytes()),
        ("..data/h.yaml", b"not: read"),
    ]);
    let loaded = open(dir.path()).poll().unwrap().unwrap();
    assert_eq!(names(&loaded), ["a", "c"]);
    let messages = said(&loaded, dir.path());
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert_eq!(messages[0], "f.yaml:10:8: unknown field 'pths'; did you mean 'paths'?");
    assert!(messages[1].starts_with("f.yaml:19:18: a policy named 'a' is already in "), "{}", messages[1]);
    assert!(messages[2].starts_with("sub/g.yml:4:18: a policy named 'c' is already in "), "{}", messages[2]);
}

/// Runs `work` and fails if it takes longer than it may, or more memory.
fn bounded<T>(work: impl FnOnce() -> T) -> T {
    let (start, before) = (Instant::now(), peak_kib());
    let outcome = work();
    let (took, grew) = (start.elapsed(), peak_kib() - before);
    assert!(took < Duration::from_secs(10), "took {took:?}");
    assert!(grew < 200 << 10, "took {grew} KiB more");
    outcome
}

/// The most memory that this process has had, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// `n` items, each made of its number.
fn lots(n: usize, item: impl Fn(usize) -> String) -> String {
    (0..n).map(item).collect::<Vec<_>>().join(",")
}

/// A file, and the one thing that is said of it.
type Case = (&'static str, Vec<u8>, &'static str);

/// Files that are too much of something.
fn excessive() -> Vec<Case> {
    let bomb = format!(
        "{HEAD}spec:\n  description: &a x\n  paths: &b [/a]\n  tags: &c [{}]\n  exclude: [{}]\n",
        lots(10, |_| "*a".to_owned()),
        lots(10, |_| "*c".to_owned())
    );
    let nested = |n: usize| format!("x: {}{}\n", "[".repeat(n), "]".repeat(n));
    let laughs = (1..12).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
        text + &format!("a{n}: &a{n} [{}]\n", lots(9, |_| format!("*a{}", n - 1)))
    });
    vec![
        (
            "10 MB",
            " ".repeat(10 << 20).into_bytes(),
            "f.yaml: the file has 10485760 bytes; at most 1048576 are read; split it",
        ),
        (
            "100,000 patterns",
            format!("{HEAD}spec: {{paths: [{}]}}\n", lots(100_000, |n| format!("/{n:x}"))).into_bytes(),
            "f.yaml:4:8: 100000 patterns; a ClusterPathPolicy may have 10000; split the policy",
        ),
        ("deep", nested(100_000).into_bytes(), "f.yaml:1:259: nested more than 32 deep; no policy needs that"),
        (
            "deep mappings",
            "a:\n".to_owned().into_bytes(),
            "f.yaml:1:1: unknown field 'a'; known fields are apiVersion, kind, metadata, spec",
        ),
        (
            "aliases in aliases",
            bomb.into_bytes(),
            "f.yaml:7:9: 'exclude[0]' is a list; write a text, in quotes if it has special characters",
        ),
        (
            "a billion laughs",
            laughs.into_bytes(),
            "f.yaml:6:5: its aliases stand for more than 524288 values; write out what is meant",
        ),
        (
            "an alias to itself",
            b"a: &a [*a]\n".to_vec(),
            "f.yaml:1:1: unknown field 'a'; known fields are apiVersion, kind, metadata, spec",
        ),
    ]
}

/// Policies that are small to write and large to work with.
fn multiplying() -> Vec<Case> {
    let tenant = "apiVersion: pathwatch.dev/v1alpha1\nkind: PathPolicy\nmetadata: {name: p, namespace: shop}\n";
    let braces = "{a,b}".repeat(6);
    let exclude = lots(256, |n| format!("'/x{n}/{}{braces}'", vec!["?".repeat(200); 4].join("/")));
    let exceptions = lots(64, |n| {
        format!(
            "{{executables: [/x], paths: [{}]}}",
            lots(15, |m| format!("'/x{n}{m}/{}{braces}'", "?".repeat(200)))
        )
    });
    let values = lots(9000, |n| format!("'/{n}'"));
    vec![
        (
            "excludes",
            format!("{tenant}spec: {{paths: [/a], exclude: [{exclude}]}}\n").into_bytes(),
            "f.yaml:4:871: from here on the patterns, with their braces multiplied out, take more than 65536 bytes; split the policy",
        ),
        (
            "paths of exceptions",
            format!("{tenant}spec: {{paths: [/a], exceptions: [{exceptions}]}}\n").into_bytes(),
            "f.yaml:4:1014: from here on the patterns, with their braces multiplied out, take more than 65536 bytes; split the policy",
        ),
        (
            "aliases of lists",
            format!(
                "{HEAD}spec: {{paths: [/a], exceptions: [&e {{executables: [{values}]}}, {}]}}\n",
                lots(9999, |_| "*e".to_owned())
            )
            .into_bytes(),
            "f.yaml:4:33: its aliases stand for more than 524288 values; write out what is meant",
        ),
    ]
}

/// Files that are nearly policies.
fn malformed() -> Vec<Case> {
    vec![
        (
            "duplicate keys",
            format!("{HEAD}spec:\n  paths: [/a]\n  paths: [/b]\n").into_bytes(),
            "f.yaml:6:3: the field 'paths' stands here a second time; keep one of them",
        ),
        (
            "duplicate labels",
            format!("{HEAD}spec: {{paths: [/a], podSelector: {{matchLabels: {{a: b, a: c}}}}}}\n").into_bytes(),
            "f.yaml:4:55: the field 'a' stands here a second time; keep one of them",
        ),
        (
            "tabs",
            format!("{HEAD}spec:\n\tpaths: [/a]\n").into_bytes(),
            "f.yaml:5:2: a tab stands where YAML wants spaces; indent by spaces",
        ),
        (
            "not UTF-8",
            b"abc\xff".to_vec(),
            "f.yaml: byte 3 is not UTF-8; write a byte that is no text as \\xNN in a pattern",
        ),
        (
            "braces that multiply",
            format!("{HEAD}spec: {{paths: ['/{}']}}\n", "{a,b}".repeat(200)).into_bytes(),
            "f.yaml:4:16: the braces of '/{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b…' stand for more than 65 patterns; write several patterns, or * for what they have in common",
        ),
        (
            "long patterns",
            format!("{HEAD}spec: {{paths: ['/{}']}}\n", "a".repeat(5000)).into_bytes(),
            "f.yaml:4:16: the pattern is 5001 bytes long; at most 4096 are allowed, as in a path",
        ),
        (
            "control characters",
            format!("{HEAD}spec: {{paths: [\"x\\e[31m\"]}}\n").into_bytes(),
            "f.yaml:4:16: 'x\\x1b[31m' begins with neither / nor **/; write '/x\\x1b[31m' for one place or '**/x\\x1b[31m' for any directory",
        ),
        (
            "a list",
            b"- a\n".to_vec(),
            "f.yaml:1:1: a list is no policy; write the fields apiVersion, kind, metadata and spec",
        ),
        (
            "a word",
            b"hello\n".to_vec(),
            "f.yaml:1:1: the text 'hello' is no policy; write the fields apiVersion, kind, metadata and spec",
        ),
    ]
}

#[test]
fn hostile_files_get_a_clear_error_in_bounded_time_and_memory() {
    let mut wrong = Vec::new();
    for (name, text, message) in [excessive(), multiplying(), malformed()].concat() {
        let got = bounded(|| said_of(&text));
        if got != [message] {
            wrong.push(format!("{name}\n  {got:?}\n  {message:?}"));
        }
    }
    assert!(wrong.is_empty(), "got and wanted:\n{}", wrong.join("\n"));
    // Faults without end are told up to a hundred.
    let bad = format!("{HEAD}spec: {{paths: [{}]}}\n", lots(5000, |n| format!("x{n}")));
    let messages = bounded(|| said_of(bad.as_bytes()));
    assert_eq!(
        (messages.len(), messages[100].as_str()),
        (101, "f.yaml:1:1: 4900 more faults; mend those above first")
    );
    // So are documents without end.
    let bad = "---\n- x\n".repeat(100_000);
    assert_eq!(bounded(|| said_of(bad.as_bytes())).len(), 101);
    // Many by many are not compared for ever.
    let many = format!(
        "{HEAD}spec: {{paths: [{}], exclude: [{}]}}\n",
        lots(9000, |n| format!("'/p/{n}'")),
        lots(9000, |n| format!("'/q/{n}*'"))
    );
    assert_eq!(bounded(|| said_of(many.as_bytes())), Vec::<String>::new());
    // Nor are the programs of exceptions held against every shell for ever.
    let programs = format!(
        "{HEAD}spec: {{paths: [/a], exceptions: [{{executables: [{}]}}]}}\n",
        lots(2000, |n| format!("'/opt/d{n}/*/x{n}*'"))
    );
    assert_eq!(bounded(|| said_of(programs.as_bytes())), Vec::<String>::new());
    // As many patterns as are allowed, with braces: loaded, and in time.
    let full = format!("{HEAD}spec: {{paths: [{}]}}\n", lots(10_000, |n| format!("'/d/{n}/{{a,b}}*'")));
    assert_eq!(bounded(|| said_of(full.as_bytes())), Vec::<String>::new());
}

#[test]
fn an_empty_file_is_no_fault_and_a_missing_directory_is() {
    let dir = directory_of(&[("f.yaml", b""), ("g.yaml", b"---\n---\n# nothing\n")]);
    let loaded = open(dir.path()).poll().unwrap().unwrap();
    assert!(loaded.policies.is_empty() && loaded.diagnostics.is_empty());
    let why = open(Path::new("/does/not/exist")).poll().unwrap_err().to_string();
    assert_eq!(
        why,
        "cannot read the policies in /does/not/exist: No such file or directory (os error 2); name another with --policies DIR or policies.directory"
    );
}
