//! Learns word pieces from texts and writes them as a `tokenizer.json`, lower case, words apart from punctuation:
//!
//! ```sh
//! cargo run --release -p regard-lab --example word_pieces -- 4096 FOLDER/tokenizer.json book.txt …
//! ```
//!
//! Pieces that are equally frequent are learned in no fixed order, so two runs may differ in some of the rarest: keep the file.

use std::error::Error;
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainerBuilder};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, TokenizerBuilder};

const UNKNOWN: &str = "[UNK]";

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [size, output, texts @ ..] = &arguments[..] else { return Err("word_pieces SIZE OUTPUT TEXT…".into()) };
    let mut tokenizer = TokenizerBuilder::default()
        .with_model(WordPiece::builder().unk_token(UNKNOWN.into()).build()?)
        .with_normalizer(Some(BertNormalizer::new(true, false, Some(true), true)))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(None::<tokenizers::processors::bert::BertProcessing>)
        .with_decoder(None::<tokenizers::decoders::wordpiece::WordPiece>)
        .build()?;
    let mut trainer = WordPieceTrainerBuilder::new()
        .vocab_size(size.parse()?)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(UNKNOWN, true)])
        .build();
    tokenizer.train_from_files(&mut trainer, texts.to_vec())?.save(output, true)?;
    Ok(())
}
