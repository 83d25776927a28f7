//! Does it compute the right thing: equivalences and golden data.

mod attention;
mod attention_backward;
mod chat_template;
mod conv_net;
mod decoder;
mod end_to_end;
mod generate;
mod gguf;
mod import_hf;
mod import_lwm;
mod kv_cache;
mod llava_video;
mod model_files;
mod packing;
mod preprocess;
mod processors;
mod prompt;
mod ring;
mod ring_backward;
mod systems;
mod tokenizer;
mod training;
mod training_data;
mod training_vqgan;
mod vila;
mod vqgan;
