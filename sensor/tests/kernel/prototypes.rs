//! What the comments of the kernel side's hooks say that they rely on, held to the kernel that runs this.
use sensor::capture::prototype;

const HOOKS: [&str; 6] = [
    include_str!("../../../sensor-ebpf/src/hooks/call.rs"),
    include_str!("../../../sensor-ebpf/src/hooks/cgroup.rs"),
    include_str!("../../../sensor-ebpf/src/hooks/filp_open.rs"),
    include_str!("../../../sensor-ebpf/src/hooks/process.rs"),
    include_str!("../../../sensor-ebpf/src/hooks/sys_exit.rs"),
    include_str!("../../../sensor-ebpf/src/hooks/truncate.rs"),
];

/// Prototypes of one function, as different kernels have them, and whether it is a tracepoint.
struct Relied<'a> {
    prototypes: Vec<&'a str>,
    tracepoint: bool,
}

fn relied(text: &str) -> Vec<Relied<'_>> {
    let (mut found, mut prototypes) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(prototype) = line.strip_prefix("// match-proto: ") {
            prototypes.push(prototype);
        } else if !prototypes.is_empty() {
            let tracepoint = line.starts_with("#[btf_tracepoint");
            found.push(Relied { prototypes: std::mem::take(&mut prototypes), tracepoint });
        }
    }
    found
}

fn name_of(prototype: &str) -> &str {
    prototype.split('(').next().unwrap().rsplit([' ', '*']).next().unwrap()
}

/// Whether this kernel has it so. A tracepoint is called through a function with one more argument before the others.
fn has(relied: &str, tracepoint: bool) -> bool {
    let (name, want) = (name_of(relied), relied.to_owned());
    if !tracepoint {
        return prototype(name).unwrap() == Some(want);
    }
    let (_, arguments) = want.split_once('(').unwrap();
    let want = format!("int __traceiter_{name}(void *__data, {arguments}");
    prototype(&format!("__traceiter_{name}")).unwrap() == Some(want)
}

#[test]
fn the_kernel_has_the_functions_that_the_hooks_rely_on() {
    let all: Vec<Relied<'_>> = HOOKS.into_iter().flat_map(relied).collect();
    assert!(all.len() >= 19, "{} of them", all.len());
    for Relied { prototypes, tracepoint } in all {
        let found = prototypes.iter().find(|prototype| has(prototype, tracepoint));
        println!("{}", found.unwrap_or_else(|| panic!("this kernel has none of {prototypes:#?}")));
    }
    assert!(
        !has("struct file *do_filp_open(int dfd, struct filename *pathname)", false),
        "a planted one was found"
    );
}
