//! Notes which compiler and which commit a program comes from. Without git the commit stays unknown.

use std::path::Path;
use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    note("REGARD_COMPILER", output(&rustc, &["--version"]));
    note("REGARD_COMMIT", output("git", &["rev-parse", "HEAD"]));
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = output("git", &["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
}

fn note(variable: &str, value: Option<String>) {
    if let Some(value) = value {
        println!("cargo:rustc-env={variable}={value}");
    }
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
