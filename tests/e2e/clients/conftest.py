"""Clients that people have, given the running product's address and token and nothing else."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import pytest_asyncio

from tests.e2e.clients.asking import Asker
from tests.serve import RunningProduct


@pytest.fixture(scope="session")
def base_url(product: RunningProduct) -> str:
    return product.base_url


@pytest.fixture(scope="session")
def token(product: RunningProduct) -> str:
    return product.api_token


@pytest.fixture(scope="session")
def model(product: RunningProduct) -> str:
    return product.model


@pytest.fixture(scope="session")
def client(base_url: str, token: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key=token, max_retries=0, timeout=120) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(base_url: str, token: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=base_url, api_key=token, max_retries=0, timeout=120
    ) as client:
        yield client


@pytest.fixture(scope="session")
def asker(client: openai.OpenAI, model: str) -> Asker:
    return Asker(client, model)
