"""The wording of the generated support dialogues: what customers and agents say. generate.py combines it.

In replies, a "good" table has what the true quality (gold.py) rewards, the "bad" one beside it what it does not.
"""

REAL_NAMES = [
    "Aisha",
    "Amir",
    "Anna",
    "Boris",
    "Carla",
    "Chen",
    "Clara",
    "Daniel",
    "Diego",
    "Elena",
    "Emma",
    "Farid",
    "Fatima",
    "Felix",
    "Freya",
    "George",
    "Grace",
    "Hana",
    "Hugo",
    "Ines",
    "Ivan",
    "Jamal",
    "Jonas",
    "Julia",
    "Kofi",
    "Laila",
    "Lars",
    "Leo",
    "Lina",
    "Lucia",
    "Maria",
    "Marta",
    "Mateo",
    "Mei",
    "Milan",
    "Mona",
    "Nadia",
    "Nina",
    "Noah",
    "Olga",
    "Omar",
    "Paul",
    "Petra",
    "Priya",
    "Rafael",
    "Rosa",
    "Samir",
    "Sara",
    "Sofia",
    "Stefan",
    "Tariq",
    "Tomas",
    "Uma",
    "Vera",
    "Viktor",
    "Wei",
    "Yara",
    "Yusuf",
    "Zoe",
    "Zofia",
]
FIRST_SYLLABLES = [
    "Ar",
    "Bel",
    "Cor",
    "Da",
    "Do",
    "Fen",
    "Gar",
    "Hal",
    "Is",
    "Jo",
    "Kel",
    "Lo",
    "Mar",
    "Nor",
    "Or",
    "Pel",
    "Qui",
    "Ras",
    "Sel",
    "Tor",
    "Ul",
    "Ven",
    "Wil",
    "Yor",
    "Zan",
]
LAST_SYLLABLES = [
    "bin",
    "da",
    "dor",
    "fia",
    "gan",
    "ka",
    "len",
    "lis",
    "mo",
    "na",
    "ric",
    "ro",
    "sa",
    "the",
    "tin",
    "va",
    "vin",
    "wen",
    "xa",
    "zo",
]

# Topics as (text, concrete steps that an agent can take). Half are complaints; the others are questions.
COMPLAINTS = (
    ("The {product} stopped working after two days.", ("send a new one", "book a repair")),
    ("The {product} arrived with a crack.", ("send a new one", "collect the broken one")),
    ("The {product} has still not arrived.", ("trace the parcel", "send a second parcel")),
    ("One part of the {product} is missing.", ("send the missing part", "pack the missing part")),
    ("You sent the {product} in the wrong colour.", ("send the right colour", "collect the wrong one")),
    ("I was charged twice for the {product}.", ("return the second payment", "correct the bill")),
    ("The {product} makes a terrible noise.", ("book a repair", "send a new one")),
    ("I returned the {product} and got no money back.", ("return the money", "check the payment")),
)
QUESTIONS = (
    ("How do I clean the {product}?", ("email the cleaning guide", "send a short guide")),
    ("How long is the warranty of the {product}?", ("email the warranty card", "look up the warranty")),
    ("Can you send the {product} to another address?", ("change the address", "update the parcel")),
    ("I would like an invoice for the {product}.", ("email the invoice", "print the invoice")),
    ("Can the {product} be wrapped as a gift?", ("wrap the gift", "add the gift paper")),
    ("Do you sell spare parts for the {product}?", ("email the list of parts", "check the spare parts")),
    ("Can I still cancel the {product}?", ("cancel the purchase", "stop the parcel")),
    ("Is the {product} safe for small children?", ("email the safety card", "ask our safety team")),
)

NAME_FIRST = ("Hi, I am {name}.", "Hello, my name is {name}.", "Hello, this is {name}.", "Good day, {name} is my name.")
NAME_LAST = ("Thanks, {name}.", "Regards, {name}.", "Yours, {name}.", "Many thanks from {name}.")
ORDER_LINES = ("My order number is {order}.", "It was order {order}.", "The order is {order}.", "See order {order}.")
ASIDES = (
    "The {other} that I have is fine.",
    "My sister has the {other} from you.",
    "I like the {other} in your shop.",
    "My friend {friend} told me to write.",
)
ASKS = ("What happens now?", "Please help me.", "Please let me know.", "I wait for your answer.")

GREET_GOOD = ("Hello {name},", "Hi {name},", "Dear {name},", "Good morning {name},")
GREET_BAD = ("Hello,", "Dear customer,", "Hi there,", "Good morning,", "Good day,")
GREET_WRONG = ("Hello {friend},", "Dear {friend},")
OPENERS = ("thank you for your message.", "thanks for writing to us.", "we got your message.", "I read your message.")

TAKES_UP = (
    "This is about {product} from {order}.",
    "I looked at {order} with {product}.",
    "I see {product} in {order}.",
    "You write about {product} from {order}.",
)
PRODUCT_VAGUE = ("the item", "the thing", "your purchase", "the product")
ORDER_VAGUE = ("your order", "one of your orders", "an older order", "the order that you made")

APOLOGY = (
    "I am sorry for the trouble.",
    "We are very sorry about this.",
    "I apologise for what happened.",
    "Please accept our apology for this.",
)
NO_APOLOGY = (
    "I am happy to help you here.",
    "I can help you with this one.",
    "This is a thing we know well.",
    "We see this now and then here.",
)

STEP_GOOD = (
    "I will {step} {when}.",
    "We will {step} {when}.",
    "{When} I will {step} for you.",
    "{When} we will {step}.",
)
WHEN = (
    "today",
    "tomorrow",
    "this afternoon",
    "on Monday",
    "on Friday",
    "by Thursday",
    "within two days",
    "within an hour",
)
STEP_BAD = (
    "Somebody may {step}.",
    "Perhaps we can {step}.",
    "It is possible to {step}.",
    "One could {step} at some point.",
)

BLAME = (
    "You should have read the manual.",
    "It is the fault of the driver.",
    "Our packers are careless.",
    "You must have done it wrong.",
    "The night shift messed up.",
)
WANDERING = (
    "By the way, it rains a lot here.",
    "That reminds me of my old cat.",
    "Speaking of news, our team won.",
    "Funny story, my uncle lost his hat.",
    "On another note, we had cake.",
)
CUT_OFF = ("It is also good to know that the", "And then there is the matter of", "What I also wanted to say about")
FILLERS = (
    "Our shop is open all week.",
    "We have your details here.",
    "Your message is with our team.",
    "Every message is read by a person.",
    "It is good that you wrote to us.",
    "We keep a note of it in our files.",
    "Many people like to shop with us.",
    "You can answer to this message.",
    "Our team is glad to hear from you.",
    "All of it is in your account.",
)
CLOSINGS = (
    "Kind regards, your support team.",
    "Best wishes from the team.",
    "Have a nice day.",
    "All the best to you.",
)
