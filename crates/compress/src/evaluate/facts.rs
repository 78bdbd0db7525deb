//! Facts that nobody can know, planted between the sentences of a text, with a question to each. Which ones and where is a function of the seed.

use crate::text::words;
use regard_lab::draw::Stream;

/// Something to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// The sentence that was planted.
    pub sentence: String,
    /// What is asked.
    pub question: String,
    /// As it stands in the sentence.
    pub answer: String,
}

/// A text with facts in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planted {
    /// With the facts' sentences.
    pub text: String,
    /// In the order of the text.
    pub facts: Vec<Fact>,
}

const FIRST: [&str; 16] = [
    "Ada", "Bruno", "Clara", "Desmond", "Edith", "Felix", "Greta", "Hugo", "Irma", "Jasper", "Klara", "Linus", "Maud", "Nestor", "Olga",
    "Piers",
];
const LAST: [&str; 16] = [
    "Abbot",
    "Barlow",
    "Crane",
    "Dunmore",
    "Ellery",
    "Fenwick",
    "Garside",
    "Holloway",
    "Ingram",
    "Jessop",
    "Kettle",
    "Lanyon",
    "Mossop",
    "Norcross",
    "Orchard",
    "Pemberton",
];
const TOWNS: [&str; 16] = [
    "Alderby",
    "Brackwell",
    "Castleton",
    "Dunsford",
    "Elmsworth",
    "Fairholm",
    "Grimsted",
    "Harrowgate",
    "Inverlay",
    "Kelstone",
    "Lowmere",
    "Marlstow",
    "Northwick",
    "Oakhanger",
    "Penrose",
    "Ravensby",
];
const THINGS: [&str; 16] = [
    "silver compass",
    "walnut cabinet",
    "copper kettle",
    "ivory comb",
    "brass telescope",
    "velvet cloak",
    "marble clock",
    "painted fan",
    "iron chest",
    "pearl brooch",
    "leather satchel",
    "crystal decanter",
    "oak barrel",
    "bronze lantern",
    "amber pipe",
    "porcelain vase",
];
const TRADES: [&str; 8] = ["clockmaker", "botanist", "shipwright", "organist", "surveyor", "glazier", "cartographer", "apothecary"];

/// The fact of a number: what it is about and what it says are drawn.
fn fact(stream: Stream, at: u64) -> Fact {
    let pick = |which: u64, from: &[&'static str]| from[(stream.bits(8 * at + which) % from.len() as u64) as usize];
    let name = format!("{} {}", pick(0, &FIRST), pick(1, &LAST));
    let (town, thing, trade) = (pick(2, &TOWNS), pick(3, &THINGS), pick(4, &TRADES));
    let number = 11 + stream.bits(8 * at + 5) % 989;
    let (sentence, question, answer) = match stream.bits(8 * at + 6) % 5 {
        0 => (format!("The library of {town} was founded by {name}."), format!("Who founded the library of {town}?"), name),
        1 => (format!("{name} keeps the {thing} in {town}."), format!("Where does {name} keep the {thing}?"), town.to_owned()),
        2 => (format!("The {trade} of {town} was given a {thing}."), format!("What was the {trade} of {town} given?"), thing.to_owned()),
        3 => (format!("In {town} the {trade} is called {name}."), format!("What is the {trade} in {town} called?"), name),
        _ => (
            format!("{name} paid {number} guineas for the {thing}."),
            format!("How much did {name} pay for the {thing}?"),
            format!("{number} guineas"),
        ),
    };
    Fact { sentence, question, answer }
}

/// Parts of a text of about so many words with `each` facts in every one, behind sentences that are drawn; at most `count` parts.
pub fn planted(text: &str, (length, count): (usize, usize), each: usize, seed: u64) -> Vec<Planted> {
    let words = words(text);
    let stream = Stream::of(&[seed, 0xfac7]);
    let mut parts = Vec::new();
    for (number, part) in words.chunks(length).take(count).enumerate().filter(|(_, part)| part.len() == length) {
        let ends: Vec<usize> = part.windows(2).filter(|pair| pair[0].sentence != pair[1].sentence).map(|pair| pair[0].span.end).collect();
        if ends.len() < each {
            continue;
        }
        let mut places: Vec<usize> = Vec::new();
        let mut draw = 0;
        while places.len() < each {
            let place = ends[(stream.bits(((number as u64) << 20) + draw) % ends.len() as u64) as usize];
            draw += 1;
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places.sort_unstable();
        let facts: Vec<Fact> = (0..each).map(|at| fact(stream, (number * each + at) as u64 + 1)).collect();
        let (mut told, mut from) = (String::new(), part[0].span.start);
        for (place, fact) in places.iter().zip(&facts) {
            told += &text[from..*place];
            told += &format!(" {}", fact.sentence);
            from = *place;
        }
        told += &text[from..part[length - 1].span.end];
        parts.push(Planted { text: told, facts });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_stand_where_they_were_planted() {
        let text = "It was a day. She went out to see. Nobody came at all. ".repeat(40);
        let all = planted(&text, (100, 4), 3, 7);
        assert_eq!(all.len(), 4);
        assert_eq!(all, planted(&text, (100, 4), 3, 7));
        assert_ne!(all, planted(&text, (100, 4), 3, 8));
        for part in &all {
            assert_eq!(part.facts.len(), 3);
            let places: Vec<usize> = part.facts.iter().map(|fact| part.text.find(&fact.sentence).unwrap()).collect();
            assert!(places.is_sorted() && part.facts.iter().all(|fact| fact.sentence.contains(&fact.answer)));
            let bare = part.facts.iter().fold(part.text.clone(), |text, fact| text.replacen(&format!(" {}", fact.sentence), "", 1));
            assert!(text.contains(&bare), "what is around them is the text");
        }
    }
}
