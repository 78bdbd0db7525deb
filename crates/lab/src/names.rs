//! The nearest of known names, for messages about a name that is not known.

/// `, did you mean "…"?` with the known name nearest to the written one, and nothing where no name is known.
pub fn meant<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearness = |name: &&str| (strsim::jaro_winkler(written, name) * 1e6) as u64;
    known.into_iter().max_by_key(nearness).map_or_else(String::new, |name| format!(", did you mean \"{name}\"?"))
}
