//! What this program runs on and what it was made with.

use regard_core::simd::Level;
use std::fs;
use std::sync::LazyLock;

/// The processor's model, where the system says.
pub fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The compiler that made this program.
pub fn compiler() -> Option<&'static str> {
    option_env!("REGARD_COMPILER")
}

/// The commit it was made from.
pub fn commit() -> Option<&'static str> {
    option_env!("REGARD_COMMIT")
}

/// The command line of this run, as a shell takes it.
pub fn command() -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "_-=.,/:+".contains(character);
    let quoted = |word: String| match word.is_empty() || !word.chars().all(is_plain) {
        true => format!("'{}'", word.replace('\'', r"'\''")),
        false => word,
    };
    let arguments = std::env::args_os().skip(1).map(|word| quoted(word.to_string_lossy().into_owned()));
    std::iter::once("regard".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// The processor's features that matter here.
#[cfg(target_arch = "x86_64")]
pub fn features() -> Vec<&'static str> {
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    all.into_iter().filter_map(|(name, detected)| detected.then_some(name)).collect()
}

/// The processor's features that matter here.
#[cfg(not(target_arch = "x86_64"))]
pub fn features() -> Vec<&'static str> {
    Vec::new()
}

/// Version, level and features.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let features = features();
        let separator = if features.is_empty() { "" } else { "; " };
        format!("{} (level {}{separator}{})", env!("CARGO_PKG_VERSION"), Level::detect(), features.join(" "))
    });
    &VERSION
}
