//! Does it compute the right thing: equivalences and golden data.

mod preprocess;
mod vqgan;
mod tokenizer;
mod prompt;
mod import_lwm;
mod import_hf;
mod attention;
mod decoder;
mod generate;
mod end_to_end;
