//! Words and sentences. A word is what white space divides, with its punctuation; it is kept or left out as a whole.
//!
//! A sentence ends with a word that ends in `.`, `!`, `?` or `…`, perhaps inside quotes or brackets, unless the next word begins in lower case or
//! the word is an abbreviation; and at a blank line. Line ends alone end none: much prose is wrapped. (The rule of Unicode's annex 29 breaks at every
//! line end.)

use std::ops::Range;

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Its bytes.
    pub span: Range<usize>,
    /// Its sentence, counted from 0.
    pub sentence: usize,
}

/// Words that end in a full stop in the middle of sentences.
const ABBREVIATIONS: [&str; 24] = [
    "mr.", "mrs.", "ms.", "dr.", "st.", "prof.", "rev.", "hon.", "capt.", "col.", "gen.", "lt.", "sgt.", "jr.", "sr.", "vs.", "etc.",
    "e.g.", "i.e.", "cf.", "no.", "vol.", "fig.", "p.",
];

/// The words of a text, with the sentences that they are in.
pub fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    for span in spans(text) {
        let sentence = match words.last() {
            None => 0,
            Some(last) => last.sentence + usize::from(ends(text, last.span.clone(), span.clone())),
        };
        words.push(Word { span, sentence });
    }
    words
}

/// What white space divides.
fn spans(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    text.split_whitespace().map(|word| {
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        start..start + word.len()
    })
}

/// Whether a sentence ends between two words that follow one another.
fn ends(text: &str, word: Range<usize>, next: Range<usize>) -> bool {
    if is_blank_line(&text[word.end..next.start]) {
        return true;
    }
    let closing = |letter: char| "\"'”’)]»*_".contains(letter);
    let bare = text[word].trim_end_matches(closing);
    if !bare.ends_with(['.', '!', '?', '…']) {
        return false;
    }
    let opening = |letter: char| "\"'“‘([«*_".contains(letter);
    let goes_on = text[next].trim_start_matches(opening).starts_with(char::is_lowercase);
    let word = bare.trim_start_matches(opening);
    let initial = word.strip_suffix('.').is_some_and(|letter| letter.chars().count() == 1 && letter.chars().all(char::is_uppercase));
    !(goes_on || initial || ABBREVIATIONS.contains(&word.to_lowercase().as_str()))
}

fn is_blank_line(gap: &str) -> bool {
    gap.bytes().filter(|byte| *byte == b'\n').count() > 1
}

/// The words that are kept, as a text: white space between neighbours stays; where words are left out there is a blank line, a line end or a
/// space, the first of them that stood anywhere in between.
pub fn joined(text: &str, words: &[Word], kept: &[bool]) -> String {
    let mut joined = String::new();
    let mut last: Option<usize> = None;
    for (at, word) in words.iter().enumerate().filter(|(at, _)| kept[*at]) {
        match last {
            None => joined.push_str(if at == 0 { &text[..word.span.start] } else { "" }),
            Some(last) if last + 1 == at => joined.push_str(&text[words[last].span.end..word.span.start]),
            Some(last) => joined.push_str(divider(text, &words[last..=at])),
        }
        joined.push_str(&text[word.span.clone()]);
        last = Some(at);
    }
    let end = words.last().map_or(0, |word| word.span.end);
    joined.push_str(if last.is_some() && last == words.len().checked_sub(1) { &text[end..] } else { trailing(&text[end..]) });
    joined
}

/// What stands between the first and the last of some words in place of the others.
fn divider(text: &str, words: &[Word]) -> &'static str {
    let gaps = || words.windows(2).map(|pair| &text[pair[0].span.end..pair[1].span.start]);
    if gaps().any(is_blank_line) {
        "\n\n"
    } else if gaps().any(|gap| gap.contains('\n')) {
        "\n"
    } else {
        " "
    }
}

fn trailing(end: &str) -> &str {
    end.find('\n').map_or("", |at| &end[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> Vec<String> {
        let words = words(text);
        let count = words.last().map_or(0, |word| word.sentence + 1);
        let of = |sentence: usize| words.iter().filter(move |word| word.sentence == sentence).map(|word| &text[word.span.clone()]);
        (0..count).map(|sentence| of(sentence).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn sentences_end_where_they_end() {
        assert_eq!(
            sentences("Mr. Starbuck saw J. Ahab. \"Who?\" he\nasked. “None!” (Nor me.) So"),
            ["Mr. Starbuck saw J. Ahab.", "\"Who?\" he asked.", "“None!”", "(Nor me.)", "So"]
        );
        assert_eq!(sentences("A heading\n\nthen text\nwrapped"), ["A heading", "then text wrapped"]);
        assert!(sentences(" \n ").is_empty());
    }

    fn kept(text: &str, keep: &[usize]) -> String {
        let words = words(text);
        let mask: Vec<bool> = (0..words.len()).map(|at| keep.contains(&at)).collect();
        joined(text, &words, &mask)
    }

    #[test]
    fn what_is_kept_reads_as_a_text() {
        let text = "  one  two three\nfour\n\nfive six \n";
        assert_eq!(kept(text, &[0, 1, 2, 3, 4, 5]), text, "all of it");
        assert_eq!(kept(text, &[0, 2]), "  one three\n");
        assert_eq!(kept(text, &[1, 3]), "two\nfour\n");
        assert_eq!(kept(text, &[1, 4]), "two\n\nfive\n");
        assert_eq!(kept(text, &[]), "\n");
    }
}
