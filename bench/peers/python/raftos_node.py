"""How far raftos gets: start one node of two, elect, replicate a value. Prints one sentence; never raises."""

import asyncio
import sys
import tempfile


async def start(folder: str) -> None:
    import raftos  # type: ignore[import-not-found]

    raftos.configure({"log_path": folder})
    await raftos.register("127.0.0.1:0", cluster=["127.0.0.1:1"])
    await raftos.Replicated(name="value").set(1)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(asyncio.wait_for(start(folder + "/"), 10))
        except Exception as error:
            print(f"does not start on Python {sys.version.split()[0]}: {type(error).__name__}: {error}")
        else:
            print("starts, elects and replicates a value")


if __name__ == "__main__":
    main()
