"""TCP across network namespaces: `relay.py listen SOCKET PORT ...` gives 127.0.0.1:PORT of its own namespace to the unix socket,
`relay.py offer SOCKET PORT ...` the unix socket to 127.0.0.1:PORT. A file name is the same place in every namespace.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()


def to(connect: Callable[[], Awaitable[Streams]]) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await connect()
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    return serve


async def main(side: str, *pairs: str) -> None:
    for path, port in zip(pairs[::2], map(int, pairs[1::2]), strict=True):
        if side == "listen":
            await asyncio.start_server(to(lambda path=path: asyncio.open_unix_connection(path)), "127.0.0.1", port)
        else:
            await asyncio.start_unix_server(to(lambda port=port: asyncio.open_connection("127.0.0.1", port)), path)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
