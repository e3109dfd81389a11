"""Work that is dealt to processes."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hfgen.runtime.errors import UserError

Table = dict[str, torch.Tensor]  # columns by name, one row for each image


def batches_of_process(count: int, size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Returns the image numbers of each batch of one process: batches of `size` are dealt to the processes in turn."""
    batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    return batches[rank::world_size]


def map_over_processes(
    accelerator: Accelerator, count: int, size: int, make: Callable[[list[int]], Table], text: str, leave: bool = True
) -> Table:
    """Deals batches to the processes in turn, and brings what they make of them to the first one, in order.

    Every process must call this. The batches are the same for any number of processes.

    Args:
        accelerator (`Accelerator`): The processes.
        count (`int`): Number of images.
        size (`int`): Images per batch.
        make (`Callable`): From image numbers to tensors with one row for each.
        text (`str`): What the progress bar says.
        leave (`bool`, *optional*, defaults to `True`): Whether the finished bar stays; if not, a log file has none.

    Returns:
        `dict[str, torch.Tensor]`: On the CPU, with `count` rows; empty in all processes but the first.
    """
    world = accelerator.num_processes
    batches = batches_of_process(count, size, accelerator.process_index, world)
    # A process without a batch of its own repeats the last one, whose rows come after all others.
    every = batches_of_process(count, size)
    batches += every[-1:] * (-(-len(every) // world) - len(batches))
    collected: dict[str, list[torch.Tensor]] = {}
    main = accelerator.is_main_process
    disable = True if not main else False if leave else None  # None: if no terminal shows it
    with tqdm(total=count, desc=text, unit="img", disable=disable, leave=leave, dynamic_ncols=True) as bar:
        for batch in batches:
            for name, rows in make(batch).items():
                if len(batch) < size:  # the processes must agree on what they gather
                    rows = torch.cat([rows, rows.new_zeros(size - len(batch), *rows.shape[1:])])
                rows = accelerator.gather(rows.to(accelerator.device).contiguous())
                if main:
                    collected.setdefault(name, []).append(rows.cpu())
            bar.update(min(world * size, count - int(bar.n)))
    return {name: torch.cat(parts)[:count] for name, parts in collected.items()}


def in_first_process(accelerator: Accelerator, act: Callable[[], None]) -> None:
    """Lets the first process do something while the others wait.

    Raises:
        UserError: If it raised one, in every process: none waits for one that is gone.
    """
    problem = None
    if accelerator.is_main_process:
        try:
            act()
        except UserError as error:
            problem = str(error)
    problem = gather_object([problem])[0]
    if problem:
        raise UserError(problem)
