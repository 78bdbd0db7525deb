//! Text of a record inside HTML, inside a script and inside an address. Whoever wrote the record may have meant harm.

/// Text between tags or inside a quoted attribute.
pub fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML has no way to write these.
            control if control.is_control() && !matches!(control, '\n' | '\t') => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

/// JSON inside `<script>`: the same values, but no character that ends the script or opens a comment.
pub fn json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => safe.push_str(&format!("\\u{:04x}", u32::from(character))),
            other => safe.push(other),
        }
    }
    safe
}

/// The contents of a `data:` address.
pub fn address(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => safe.push(char::from(byte)),
            other => safe.push_str(&format!("%{other:02X}")),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARM: &str = "</script><img src=x onerror='alert(1)'> \"&\u{2028}\u{0}";

    #[test]
    fn text_stays_text_in_html() {
        assert_eq!(html(HARM), "&lt;/script&gt;&lt;img src=x onerror=&#39;alert(1)&#39;&gt; &quot;&amp;\u{2028}\u{fffd}");
    }

    #[test]
    fn json_means_the_same_and_cannot_end_its_script() {
        let written = serde_json::to_string(&[HARM]).unwrap();
        let safe = json(&written);
        assert!(!safe.contains(['<', '>', '&', '\u{2028}']), "{safe}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&safe).unwrap(), [HARM]);
    }

    #[test]
    fn an_address_holds_nothing_that_has_a_meaning_there() {
        assert_eq!(address("a,b\n\"ü\"#&%"), "a%2Cb%0A%22%C3%BC%22%23%26%25");
    }
}
