//! Text parts of a system: the tokenizer, the chat template, and the ids that end an answer.

use crate::{
    context::{
        chat_template::ChatTemplate,
        gguf,
        tokenizer::{Tokenizer, folder_of, tokenizer_folder},
    },
    error::{Context, Result},
    file_name::FileName,
    systems::{
        System,
        config::{Config, ids, read_json},
    },
};

impl System {
    /// The tokenizer of its directory, else that of its GGUF file.
    ///
    /// # Errors
    /// `NotFound` if there is none, `BadInput` for one that cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let model_type = self.config().and_then(Config::model_type);
        match (self.gguf(), Tokenizer::of_model(&self.path, model_type)?) {
            (_, Some(tokenizer)) => Ok(tokenizer),
            (Some(file), None) => {
                let doing = || format!("read the tokenizer of {}", file.path().shown());
                gguf::tokenizer(&file.header()?).doing(doing)
            }
            (None, None) => Tokenizer::open(&self.path),
        }
    }

    /// The chat template of its directory, else that of its GGUF file, else that of its family.
    ///
    /// # Errors
    /// `BadInput` for a template that does not compile.
    pub fn template(&self) -> Result<Option<ChatTemplate>> {
        let folder = folder_of(&self.path);
        if let Some(template) = ChatTemplate::of_directory(folder)? {
            return Ok(Some(template));
        }
        if let Some(file) = self.gguf() {
            return gguf::chat_template(&file.header()?, file.path());
        }
        let vision = self.spec.answering().and_then(|spec| spec.vision.as_ref());
        let name = vision.and_then(|vision| vision.chat_template.as_ref());
        name.map(|name| ChatTemplate::built_in(name, folder))
            .transpose()
    }

    /// The ids that end an answer: the end of sequence of its `tokenizer`, further ones named by a GGUF file, and those of
    /// `generation_config.json`, one or a list.
    ///
    /// # Errors
    /// `BadInput` for an invalid id, or a file that cannot be read.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
        if let Some(file) = self.gguf() {
            ids.extend(gguf::stop_ids(&file.header()?)?);
        }
        for id in self.ids_of_generation()? {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Those of `generation_config.json`, else those of the configuration, as in transformers.
    fn ids_of_generation(&self) -> Result<Vec<u32>> {
        let path = tokenizer_folder(&self.path).join("generation_config.json");
        let named = read_json(&path)?.map(|config| config["eos_token_id"].clone());
        Ok(match named {
            Some(named) if !named.is_null() => ids(&named),
            _ => self.config().map(Config::end_ids).unwrap_or_default(),
        })
    }
}
