//! Compiles each `src/NAME.bpf.c` with clang into `$OUT_DIR/NAME.bpf.o`.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

const OBJECTS: [&str; 5] = ["port", "merged", "connect", "uplink", "sink"];

fn main() {
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-changed=src/mappings.h");
    for object in OBJECTS {
        let source = format!("src/{object}.bpf.c");
        println!("cargo::rerun-if-changed={source}");
        if let Err(message) = compile(&source, object) {
            println!("cargo::error={message}");
            exit(1);
        }
    }
}

fn compile(source: &str, object: &str) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let out_dir = env::var("OUT_DIR").map_err(|error| format!("read OUT_DIR: {error}"))?;
    let arch = env::var("CARGO_CFG_TARGET_ARCH")
        .map_err(|error| format!("read CARGO_CFG_TARGET_ARCH: {error}"))?;

    let output = Command::new(&clang)
        // v3 has the 64-bit atomic OR of the doorbell; Linux 5.12 and later run it.
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g"])
        .args(["-Wall", "-Wextra", "-Werror"])
        // With `-target bpf` clang does not search Debian's multiarch folder, where
        // <asm/types.h> is. Where there is no such folder, the option does nothing.
        .args(["-idirafter", &format!("/usr/include/{arch}-linux-gnu")])
        .args(["-c", source, "-o"])
        .arg(PathBuf::from(out_dir).join(format!("{object}.bpf.o")))
        .output()
        .map_err(|error| {
            format!(
                "run {clang}: {error}; it compiles the BPF programs in {source}. \
                 Install clang (Debian: apt-get install clang libbpf-dev) \
                 or name it in the environment variable CLANG"
            )
        })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    for line in stderr.lines() {
        println!("cargo::warning={line}");
    }
    let hint = if stderr.contains("bpf/bpf_helpers.h") {
        "; the header is in libbpf's package (Debian: apt-get install libbpf-dev)"
    } else {
        ""
    };
    Err(format!(
        "{clang} could not compile {source} ({}){hint}",
        output.status
    ))
}
