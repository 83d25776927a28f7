//! Chat templates give the text that transformers gives, and bad ones an error.

use longreel_models::{
    context::chat_template::{ChatTemplate, Content, Part, Role, Turn},
    error::Kind,
};
use serde_json::Value;

use crate::support::golden;

fn template(source: &str) -> ChatTemplate {
    let special = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
    let specials = [("bos_token", "<s>"), ("eos_token", "</s>")].map(special);
    ChatTemplate::new("test.jinja", source.to_owned(), specials.to_vec()).unwrap()
}

fn message(message: &Value) -> Turn {
    let role = match message["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    let part = |part: &Value| match part["type"].as_str().unwrap() {
        "image" => Part::Image,
        "video" => Part::Video,
        _ => Part::Text {
            text: part["text"].as_str().unwrap().to_owned(),
        },
    };
    let content = match &message["content"] {
        Value::String(words) => Content::Words(words.clone()),
        parts => Content::Parts(parts.as_array().unwrap().iter().map(part).collect()),
    };
    Turn { role, content }
}

#[test]
fn templates_give_the_text_that_transformers_gives() {
    let text = std::fs::read_to_string(golden::path("chat_templates.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let template = template(golden["templates"][name].as_str().unwrap());
        let messages: Vec<Turn> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(message)
            .collect();
        let got = template.render(&messages);
        match case["text"].as_str() {
            Some(expected) => assert_eq!(got.unwrap(), expected, "{name}"),
            None => assert_eq!(got.unwrap_err().kind(), Kind::BadInput, "{name}"),
        }
    }
}

fn refusal(source: &str) -> String {
    let asked = Turn {
        role: Role::User,
        content: Content::Words("Who?".into()),
    };
    let made = ChatTemplate::new("folder/chat_template.jinja", source.to_owned(), Vec::new());
    let error = made.and_then(|t| t.render(&[asked])).unwrap_err();
    assert_eq!(error.kind(), Kind::BadInput);
    error.to_string()
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let error = refusal(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = j %}{% endfor %}{% endfor %}",
    );
    assert!(error.contains("does not come to an end"), "{error}");
    let error = refusal("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
    assert!(error.contains("folder/chat_template.jinja"), "{error}");
}

#[test]
fn a_template_that_writes_without_bound_is_stopped() {
    let error = refusal("{% for i in range(90000) %}{{ '0123456789abcdef' * 4096 }}{% endfor %}");
    assert!(
        error.contains("longer than") || error.contains("end within"),
        "{error}"
    );
}

#[test]
fn a_template_that_fails_names_its_file_and_line() {
    let error = refusal("first\n{{ raise_exception('no videos here') }}");
    assert!(error.contains("no videos here"), "{error}");
    assert!(
        error.contains("folder/chat_template.jinja, line 2"),
        "{error}"
    );
    let error = refusal("{% if messages %}");
    assert!(
        error.contains("folder/chat_template.jinja, line 1"),
        "{error}"
    );
}
