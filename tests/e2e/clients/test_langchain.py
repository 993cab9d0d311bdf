"""LangChain's own wrapper of the API: chats, streams, tools, structured output."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

ASK = "What is the capital of France?"


class Weather(BaseModel):
    """Look up the weather of a place."""

    city: str = Field(max_length=12, description="Where")
    days: int = Field(ge=1, le=9)


def chat_model(product: RunningProduct, **more: Any) -> ChatOpenAI:
    given = {"temperature": 0, "max_tokens": 24, "max_retries": 0, **more}
    return ChatOpenAI(
        model=product.model, base_url=product.base_url, api_key=product.api_token, **given
    )


def test_a_chat(product: RunningProduct) -> None:
    turns = [
        SystemMessage("Be brief."),
        HumanMessage("Hi"),
        AIMessage("Hello."),
        HumanMessage([{"type": "text", "text": ASK}]),
    ]
    answer = chat_model(product).invoke(turns)
    assert "Paris" in str(answer.content)
    assert answer.response_metadata["finish_reason"] in {"stop", "length"}
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert "cache_read" in answer.usage_metadata["input_token_details"]


def test_a_stream(product: RunningProduct) -> None:
    model = chat_model(product, stream_usage=True)
    pieces = list(model.stream(ASK))
    assert len(pieces) > 4
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.content == model.invoke(ASK).content
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] > 0


def test_several_at_once(product: RunningProduct) -> None:
    answers = chat_model(product, max_tokens=4).batch(["One", "Two", "Three"])
    assert len(answers) == 3 and all(answer.content for answer in answers)


async def test_asynchronously(product: RunningProduct) -> None:
    model = chat_model(product)
    answer = await model.ainvoke(ASK)
    streamed = "".join([str(piece.content) async for piece in model.astream(ASK)])
    assert streamed == answer.content


def test_its_parameters(product: RunningProduct) -> None:
    model = chat_model(
        product,
        temperature=1.2,
        seed=4,
        top_p=0.9,
        n=2,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logprobs=True,
        top_logprobs=2,
        stop=["never said"],
        max_tokens=6,
        extra_body={"top_k": 40},
    )
    result = model.generate([[HumanMessage(ASK)]])
    assert len(result.generations[0]) == 2
    said = result.generations[0][0].message.response_metadata["logprobs"]["content"]
    assert len(said) == 6 and len(said[0]["top_logprobs"]) == 2


@pytest.mark.parametrize("choice", ["any", "Weather"])
def test_tools(product: RunningProduct, choice: str) -> None:
    model = chat_model(product, max_tokens=80)
    bound = model.bind_tools([Weather], tool_choice=choice, parallel_tool_calls=False)
    asked = HumanMessage("How is the weather in Paris for the next 3 days?")
    answer = bound.invoke([asked])
    (call,) = answer.tool_calls
    assert call["name"] == "Weather"
    Weather.model_validate(call["args"])
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    back = ToolMessage("Sunny.", tool_call_id=call["id"])
    second = model.bind_tools([Weather], tool_choice="none").invoke([asked, answer, back])
    assert second.content and not second.tool_calls


def test_tools_in_a_stream(product: RunningProduct) -> None:
    bound = chat_model(product, max_tokens=80).bind_tools(
        [Weather], tool_choice="any", parallel_tool_calls=False
    )
    pieces = list(bound.stream("How is the weather in Paris?"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    (call,) = whole.tool_calls
    Weather.model_validate(call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(product: RunningProduct, method: str) -> None:
    model = chat_model(product, max_tokens=80).with_structured_output(Weather, method=method)
    assert isinstance(model.invoke("The weather in Paris for three days."), Weather)


def test_completions(product: RunningProduct) -> None:
    model = OpenAI(
        model=product.model,
        base_url=product.base_url,
        api_key=product.api_token,
        temperature=0,
        max_tokens=4,
    )
    assert "Paris" in model.invoke("The capital of France is")
    assert "".join(model.stream("The capital of France is")) == model.invoke(
        "The capital of France is"
    )


def test_embeddings(product: RunningProduct) -> None:
    model = OpenAIEmbeddings(
        model=product.embedding_model,
        base_url=product.base_url,
        api_key=product.api_token,
        check_embedding_ctx_length=False,  # it would cut by the tokens of another model
    )
    vectors = model.embed_documents(["A man is eating.", "The sea was calm."])
    assert [len(vector) for vector in vectors] == [384, 384]
